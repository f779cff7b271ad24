//! The minimal Rust version that Cargo.toml states is at least that of every dependency.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::{Workspace, output};

pub fn msrv(workspace: &Workspace) -> Result<()> {
    let metadata = output(workspace.cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let version = |package: &Value| package["rust_version"].as_str().map(parsed);
    let own = packages.iter().find(|package| package["name"] == "moerl").context("the package moerl")?;
    let stated = version(own).context("moerl states a rust-version")?;
    let newer: Vec<String> = packages
        .iter()
        .filter(|package| version(package).is_some_and(|needed| needed > stated))
        .map(|package| {
            format!("{} {} needs {}", text(package, "name"), text(package, "version"), text(package, "rust_version"))
        })
        .collect();
    if !newer.is_empty() {
        bail!("rust-version is {}, but {}", text(own, "rust_version"), newer.join(", "));
    }
    println!("rust-version {} covers all {} packages", text(own, "rust_version"), packages.len());
    Ok(())
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// `1.88` and `1.88.0` as numbers that compare.
fn parsed(version: &str) -> [u64; 3] {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::parsed;

    #[test]
    fn versions_compare_by_number() {
        assert!(parsed("1.100") > parsed("1.99.9"));
        assert_eq!(parsed("1.88"), parsed("1.88.0"));
    }
}
