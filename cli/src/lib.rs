//! The `moerl` command: a policy update run on your own data, golden vectors checked, devices listed, step files generated.
//!
//! The binary is three lines; everything is here, so that tests call what a user calls.

pub mod advantage;
pub mod arguments;
pub mod audit;
pub mod backend;
pub mod bench;
pub mod check;
pub mod clock;
pub mod correction;
pub mod devices;
pub mod failure;
pub mod findings;
pub mod gate;
pub mod generate;
pub mod objective;
pub mod page;
pub mod progress;
pub mod random;
pub mod routes;
pub mod step;
pub mod stepfile;
pub mod table;
pub mod upload;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command, RoutesCommand};
use failure::{Failure, Result};

/// Runs the command with these arguments, the first being its own name; prints what came of it. Exit code 0, 1 for a failure,
/// 2 for bad arguments or input.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match call(arguments) {
        Ok(outcome) => {
            print(&outcome.text);
            ExitCode::from(outcome.exit_code)
        }
        Err(failure) => {
            // Nothing can be done about a standard error that is closed.
            let _ = writeln!(std::io::stderr(), "moerl: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// As [`main`], but says what it would print.
///
/// # Errors
/// What [`main`] would print on standard error.
pub fn call<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> Result<Outcome> {
    match parse(arguments.into_iter().map(Into::into))? {
        Parsed::Arguments(arguments) => run(&arguments),
        Parsed::Help(text) => Ok(text.into()),
    }
}

/// What a command says, and its exit code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub text: String,
    /// 0, or 1 where the text tells of a failure.
    pub exit_code: u8,
}

impl From<String> for Outcome {
    fn from(text: String) -> Outcome {
        Outcome { text, exit_code: 0 }
    }
}

/// Does what parsed arguments ask for.
///
/// # Errors
/// Every [`Failure`] of the subcommands.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    match &arguments.command {
        Command::Devices => Ok(devices::run().into()),
        Command::Step(options) => step::run(options).map(Into::into),
        Command::Audit(options) => audit::run(options),
        Command::Check(options) => check::run(options),
        Command::Generate(options) => generate::run(options).map(|()| Outcome::default()),
        Command::Bench(options) => bench::run(options).map(Into::into),
        Command::Routes(options) => match &options.command {
            RoutesCommand::Inspect(options) => routes::run(options),
        },
    }
}

/// The arguments, or the text of `--help` or `--version`.
enum Parsed {
    Arguments(Arguments),
    Help(String),
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Parsed> {
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => Ok(Parsed::Arguments(arguments)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Help(error.to_string())),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let command = Arguments::command();
                let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
                Err(Failure::input(format!("what to do? One of {} (see --help)", names.join(", "))))
            }
            _ => Err(Failure::input(usage(&error.to_string()))),
        },
    }
}

/// clap's several lines as one: what was wrong, and what is possible.
fn usage(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let said: Vec<&str> =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")).collect();
    format!("{} (see --help)", said.join(" ").trim_start_matches("error: "))
}

/// A closed pipe (`moerl step | head -1`) is not an error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
