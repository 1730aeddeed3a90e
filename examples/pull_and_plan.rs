//! Pulls an image and prints the mount plan for a runtime that mounts itself: `pull_and_plan STORE IMAGE`.

use std::path::Path;

use unply::image::Reference;
use unply::unpack::{Options, open_store, pull};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let store = args.next().ok_or("name a store")?;
    let reference: Reference = args.next().ok_or("name an image")?.parse()?;
    let options = Options::default();

    let store = open_store(Path::new(&store), options.durable)?;
    let pulled = pull(&reference, &store, &options, &|_event| {})?;
    // As long as the chain is held, nothing of it is collected.
    let plan = pulled.chain.view();
    println!("chain {}", pulled.chain.chain_id());
    for lower in &plan.lowers {
        println!("{}", lower.display()); // topmost first
    }
    Ok(())
}
