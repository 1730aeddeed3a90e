//! Mounts an image writable, changes it, unmounts it: `mount_snapshot STORE IMAGE DIR`, as root or in `unshare -Urm`.

use std::path::Path;

use unply::image::Reference;
use unply::unpack::{Options, open_store, pull};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let store = args.next().ok_or("name a store")?;
    let reference: Reference = args.next().ok_or("name an image")?.parse()?;
    let dir = args.next().ok_or("name a directory")?;
    let options = Options::default();

    let store = open_store(Path::new(&store), options.durable)?;
    let pulled = pull(&reference, &store, &options, &|_event| {})?;
    let snapshot = pulled.chain.snapshot("example")?;
    let mounted = snapshot.mount(Path::new(&dir))?;
    std::fs::write(mounted.target().join("written-by-the-example"), "hello\n")?;
    mounted.detach()?;
    println!("what changed is in {}", snapshot.record().upper_path(&store).display());
    drop(snapshot);
    store.remove_snapshot("example")?;
    Ok(())
}
