//! The `unply` program; everything it does is in the library's `cli` module.

fn main() -> std::process::ExitCode {
    unply::cli::main()
}
