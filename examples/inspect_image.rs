//! Prints what an image is made of, without unpacking it: `inspect_image oci:DIR:TAG`.

use unply::image::{OpenOptions, Reference, Source, open};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reference: Reference = std::env::args().nth(1).ok_or("name an image")?.parse()?;
    let image = match open(&reference, &OpenOptions::default())? {
        Source::Image(image) => image,
        // Standard input, a pipe or a compressed archive: members go by, the documents are kept.
        Source::Stream(stream) => stream.read(|_member| Ok(()))?.image,
    };
    println!("{} for {}", image.reference, image.platform);
    for layer in &image.layers {
        println!("{:?} {:?} {}", layer.diff_id, layer.size, layer.media_type);
    }
    Ok(())
}
