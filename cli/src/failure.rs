//! What ends the command early, and with which exit code.

use std::fmt;

/// Why a command could not be done: one line for standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Bad arguments or bad input: exit code 2.
    Input(String),
    /// Anything else: exit code 1.
    Run(String),
}

/// The result of everything fallible in the command.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Bad arguments or input.
    pub fn input(message: impl Into<String>) -> Failure {
        Failure::Input(message.into())
    }

    /// A failure of the run itself.
    pub fn run(message: impl Into<String>) -> Failure {
        Failure::Run(message.into())
    }

    /// The exit code that says so.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Input(_) => 2,
            Failure::Run(_) => 1,
        }
    }

    /// The same failure with what was being done in front.
    #[must_use]
    pub fn during(self, what: impl fmt::Display) -> Failure {
        match self {
            Failure::Input(message) => Failure::Input(format!("{what}: {message}")),
            Failure::Run(message) => Failure::Run(format!("{what}: {message}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Input(message) | Failure::Run(message)) = self;
        f.write_str(&one_line(message))
    }
}

impl From<moerl::Error> for Failure {
    fn from(error: moerl::Error) -> Failure {
        match error {
            moerl::Error::Invalid(_) | moerl::Error::Data(_) => Failure::Input(error.to_string()),
            other => Failure::Run(other.to_string()),
        }
    }
}

/// `text` without anything that would leave its line or move a terminal's cursor: names in a damaged file may hold any character.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_the_names_in_it() {
        let failure = Failure::input("tensor a\nb\u{1b}[2J: bad");
        assert_eq!(failure.to_string(), "tensor a\\nb\\u{1b}[2J: bad");
        assert_eq!(failure.exit_code(), 2);
        assert_eq!(Failure::run("x").during("step").to_string(), "step: x");
    }
}
