//! What a loss of power leaves: the store's promise that what a command published is there, completely.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::path::Path;
use std::process::Command;

use disk::{Disk, Image, Random, Rig, disks_or_skip};

fn write_tree(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for n in 0..50 {
        std::fs::write(dir.join(format!("f{n}")), vec![b'x'; 10_000]).unwrap();
    }
}

fn whole(dir: &Path) -> bool {
    (0..50).all(|n| std::fs::read(dir.join(format!("f{n}"))).is_ok_and(|c| c == vec![b'x'; 10_000]))
}

#[test]
fn the_rig_tells_loss_from_safety() {
    if !disks_or_skip("the_rig_tells_loss_from_safety") {
        return;
    }
    common::private_mounts();
    let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
    let rig = Rig::new(tmp.path());
    let t = std::time::Instant::now();
    let fresh = rig.ext4(64);
    eprintln!("mkfs {:?}", t.elapsed());
    let place = tmp.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let disk = rig.disk(fresh.clone());
    let mounted = disk.mount(&place, "noinit_itable");
    eprintln!("mounted {:?}", t.elapsed());
    write_tree(&place.join("a"));
    let plain = disk.cut();
    let _ = Command::new("sync").arg("-f").arg(&place).status();
    let safe = disk.cut();
    eprintln!("cut {:?} {} {}", t.elapsed(), plain.unsettled(), safe.unsettled());
    drop(mounted);
    drop(disk);
    for (cut, expected) in [(plain, false), (safe, true)] {
        let disk = rig.disk(cut.bare());
        let mounted = disk.mount(&place, "noinit_itable");
        assert_eq!(whole(&place.join("a")), expected);
        drop(mounted);
        eprintln!("judged {:?}", t.elapsed());
    }
}
