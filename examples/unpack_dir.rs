//! Flattens an image into a directory and prints every id it has: `unpack_dir IMAGE DIR`.

use std::path::Path;

use unply::image::Reference;
use unply::unpack::{Options, unpack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let reference: Reference = args.next().ok_or("name an image")?.parse()?;
    let dir = args.next().ok_or("name a directory")?;
    let done = unpack(&reference, Path::new(&dir), None, &Options::default(), &|_event| {})?;
    println!("image {}, chain {}", done.ids.image_id, done.ids.chain_id);
    for layer in &done.layers {
        println!("{} {} entries in {:.3} s", layer.diff_id, layer.entries, layer.seconds);
    }
    Ok(())
}
