//! The `testudo` command.

fn main() -> std::process::ExitCode {
    testudo::main()
}
