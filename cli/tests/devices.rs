//! `moerl devices`, and the manners that every subcommand shares.

mod common;

use common::{assert_refused, moerl, process};

#[test]
fn devices_says_what_is_there_and_never_fails() {
    let outcome = moerl(&["devices"]).unwrap();
    assert_eq!(outcome.exit_code, 0);
    for line in ["emulator", "reference", "auto"] {
        assert!(outcome.text.contains(line), "{}", outcome.text);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn what_is_missing_comes_with_its_fix() {
    let text = moerl(&["devices"]).unwrap().text;
    assert!(text.contains("driver") && text.contains("kernels"), "{text}");
    if moerl::device::cuda::driver_version().is_err() {
        let at = text.find("no NVIDIA driver").or_else(|| text.find("driver")).unwrap();
        assert!(text[at..].contains("fix: "), "{text}");
    }
    if moerl::device::cuda::images().is_empty() {
        assert!(text.contains("none in this build") && text.contains("nvcc"), "{text}");
    } else {
        assert!(text.contains(moerl::device::cuda::toolkit()), "{text}");
    }
}

#[test]
fn bad_arguments_are_one_line_and_exit_code_2() {
    let table: &[(&[&str], &str)] = &[
        (&[], "devices"),
        (&["fly"], "fly"),
        (&["devices", "--fast"], "--fast"),
        (&["step", "--backend", "tpu"], "tpu"),
        (&["generate"], "--tokens"),
        (&["generate", "--tokens"], "--tokens"),
    ];
    for (arguments, needle) in table {
        assert_refused(&format!("{arguments:?}"), moerl(arguments), &[needle]);
        let output = process(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["--version"], &["generate", "--help"]] {
        let output = process(arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}
