//! Prints a random image, entry by entry: `cargo run -p testkit --example show SEED`.
use testkit::tree::text;

fn main() {
    let seed = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1);
    for (n, layer) in testkit::random::random_image(seed).iter().enumerate() {
        println!("layer {n}");
        for entry in layer {
            println!("  {:<24} {:?}", text(&entry.path), entry.kind);
        }
    }
}
