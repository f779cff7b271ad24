//! The `moerl` command. Everything is in the library `moerl_cli`, where tests reach it.

fn main() -> std::process::ExitCode {
    moerl_cli::main(std::env::args_os())
}
