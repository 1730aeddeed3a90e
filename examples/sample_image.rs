//! Writes a small image that shows what layers do: `cargo run --example sample_image DIR`.
//!
//! DIR becomes an OCI layout with the tag `latest`. Its second layer replaces, deletes and hides what its first one has.

use std::process::ExitCode;

use testkit::image::{Compression, ImageSpec, OciLayout};
use testkit::{dir, file, hardlink, layer, opaque, symlink, whiteout};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(path), None) = (args.next(), args.next()) else {
        eprintln!("usage: sample_image DIR");
        return ExitCode::from(2);
    };
    match write(path.as_ref()) {
        Ok(layers) => {
            println!("oci:{}:latest, {layers} layers", std::path::Path::new(&path).display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {}: {e}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn write(path: &std::path::Path) -> std::io::Result<usize> {
    let base = layer(&[
        dir("etc/"),
        file("etc/os-release", "NAME=sample\nVERSION_ID=1\n"),
        file("etc/motd", "hello from the first layer\n"),
        dir("usr/"),
        dir("usr/bin/"),
        file("usr/bin/tool", "#!/bin/sh\necho tool\n").mode(0o4755),
        // A link header carries metadata of its own, which the shared inode takes.
        hardlink("usr/bin/same-tool", "usr/bin/tool").mode(0o4755),
        symlink("bin", "usr/bin"),
        dir("var/"),
        dir("var/cache/"),
        file("var/cache/old-1", "stale"),
        file("var/cache/old-2", "stale"),
    ]);
    let change = layer(&[
        file("etc/os-release", "NAME=sample\nVERSION_ID=2\n"),
        whiteout("etc", "motd"),
        dir("var/cache/").mode(0o700),
        opaque("var/cache"),
        file("var/cache/new", "fresh"),
        // `bin` is a symlink of the layer below: this lands in usr/bin, and the symlink stays.
        file("bin/added", "#!/bin/sh\necho added\n").mode(0o755),
    ]);
    // An image of an earlier run is replaced, but nothing else is ever removed.
    if path.join("oci-layout").is_file() {
        std::fs::remove_dir_all(path)?;
    }
    let image = ImageSpec::new([base, change]).tag("latest").compression(Compression::Gzip);
    OciLayout::new(path)?.add(&image)?;
    Ok(image.layers.len())
}
