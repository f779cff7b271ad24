//! What lies in the folder of kernels: sources, the headers each one reads, the entry points each one declares.

use std::fs;
use std::path::{Path, PathBuf};

/// Every `.cu` file of `folder`, in the order of their names.
pub fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut sources: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    Ok(sources)
}

/// The name that a source and its image go by: `gate` for `kernels/gate.cu`.
pub fn name(source: &Path) -> &str {
    source.file_stem().and_then(|stem| stem.to_str()).expect("kernel files have plain names")
}

/// `source` and every header that it includes with quotes, directly or not.
///
/// The emulator's headers are left out: nvcc never reads them.
pub fn closure(source: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = vec![source.to_owned()];
    let mut next = 0;
    while next < files.len() {
        let file = files[next].clone();
        next += 1;
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        for header in included(&text).filter(|header| !header.starts_with("emulation/")) {
            let path = file.parent().expect("a file has a folder").join(header);
            if path.is_file() && !files.contains(&path) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn included(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
        rest.strip_prefix('"')?.split_once('"').map(|(header, _)| header)
    })
}

/// One `MOERL_KERNEL(name, parameters, max_threads)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub parameters: String,
    pub max_threads: String,
}

/// The entry points that a source declares, each at the start of a line of its own.
pub fn entries(text: &str) -> Vec<Entry> {
    text.lines().filter_map(entry).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let (inside, _) = line.strip_prefix("MOERL_KERNEL(")?.split_once(')')?;
    let mut words = inside.split(',').map(|word| word.trim().to_owned());
    let entry = Entry { name: words.next()?, parameters: words.next()?, max_threads: words.next()? };
    words.next().is_none().then_some(entry)
}
