//! The `hosier` program: parses its arguments, runs, exits.

fn main() -> std::process::ExitCode {
    hosier::cli::main()
}
