//! Damaged metadata of a store: journals and records are read or refused, never believed blindly.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use unply::apply::inventory::Inventory;
use unply::apply::journal::{Reader, Writer};
use unply::policy::{Ownership, WhiteoutForm, XattrFlavour};
use unply::store::{Flavour, Store};

fn journal(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else { return };
    let mut records = Vec::new();
    while let Ok(Some(record)) = reader.read() {
        records.push(record);
    }
    // What was read is written and read again without loss.
    let mut writer = Writer::new(Vec::new()).unwrap();
    for record in &records {
        writer.push(record.as_parts()).unwrap();
    }
    let bytes = writer.finish().unwrap();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    for record in records {
        assert_eq!(reader.read().unwrap(), Some(record));
    }
    assert_eq!(reader.read().unwrap(), None);
    // Whatever it says, it adds up to names or is refused.
    let _ = Inventory::read(Reader::new(data).unwrap());
}

static STORE: LazyLock<PathBuf> = LazyLock::new(unply_fuzz::scratch);

const FLAVOUR: Flavour =
    Flavour { xattr: XattrFlavour::User, ownership: Ownership::Keep, whiteouts: WhiteoutForm::CharDevice };

/// One record of each kind holds the bytes; the store opens, lists, checks and collects, or says why not.
fn records(which: u8, data: &[u8]) {
    let root = STORE.join("store");
    let _ = std::fs::remove_dir_all(&root); // absent the first time
    drop(Store::open(&root, FLAVOUR, false).unwrap());
    let id = "abcdefghijkl";
    let place = match which % 6 {
        0 => "store.json".to_string(),
        1 => format!("layers/{id}/record.json"),
        2 => format!("fixups/{id}/record.json"),
        3 => format!("images/{id}/record.json"),
        4 => format!("snapshots/{id}.json"),
        _ => format!("pins/{id}"),
    };
    let path = root.join(place);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::create_dir_all(root.join("l").join(id)).unwrap();
    std::fs::write(path, data).unwrap();
    let Ok(store) = Store::open_existing(&root, false) else { return };
    let _ = store.images();
    let _ = store.layers();
    let _ = store.snapshots();
    let _ = store.find_image("x");
    let _ = store.check();
    let _ = store.gc(true);
    let _ = store.gc(false);
}

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    match which {
        b'j' => journal(rest),
        which => records(*which, rest),
    }
});
