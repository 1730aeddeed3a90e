//! Follows an unpack and gives it up at the first warning: `events_and_cancel IMAGE DIR`.

use std::path::Path;

use unply::error::ErrorKind;
use unply::image::Reference;
use unply::unpack::{Event, Options, unpack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let reference: Reference = args.next().ok_or("name an image")?.parse()?;
    let dir = args.next().ok_or("name a directory")?;
    let options = Options::default();
    let cancel = options.cancel.clone();
    let events = |event: Event| match event {
        Event::LayerStarted { index, .. } => eprintln!("layer {index} started"),
        Event::Warning { warning, .. } => {
            eprintln!("{}: {}", warning.kind, warning.detail);
            cancel.cancel(); // from any thread, at any time
        }
        _ => {}
    };
    match unpack(&reference, Path::new(&dir), None, &options, &events) {
        Err(e) if e.kind() == ErrorKind::Cancelled => println!("given up; {dir} is as it was"),
        done => println!("chain {}", done?.ids.chain_id),
    }
    Ok(())
}
