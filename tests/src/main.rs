//! The command line, for tests that start real processes.

fn main() -> std::process::ExitCode {
    testudo::main()
}
