//! Which devices the kernels are compiled for.

use std::fmt;

/// A compute capability as the compiler spells it: 90 is 9.0, 120 is 12.0; a suffix (`90a`) names code for that chip alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    pub number: u32,
    pub suffix: Option<char>,
}

/// Machine code is made for these, as far as the toolkit knows them…
pub const MACHINE_CODE: [u32; 4] = [80, 90, 100, 120];
/// …and PTX for these, from which the driver compiles for every other device from 8.0 on.
pub const PORTABLE: [u32; 2] = [80, 90];
/// Machine code for the second, where both are asked for, is made from the PTX of the first. It is the same code to the instruction as from PTX of
/// its own, which would take an eighth of all time of the compiler. (PTX for 9.0 would not do: the code from it spills registers.)
const ALIKE: (u32, u32) = (100, 120);

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.number)?;
        self.suffix.map_or(Ok(()), |suffix| write!(f, "{suffix}"))
    }
}

impl Architecture {
    /// Reads `90`, `9.0`, `sm_90`, `compute_90` or `90a`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` names no compute capability; write 90, 9.0, sm_90 or 90a");
        let bare = text.trim();
        let bare = bare.strip_prefix("sm_").or_else(|| bare.strip_prefix("compute_")).unwrap_or(bare);
        let suffix = bare.chars().last().filter(|c| matches!(c, 'a' | 'f'));
        let digits = suffix.and_then(|suffix| bare.strip_suffix(suffix)).unwrap_or(bare);
        let number = match digits.split_once('.') {
            Some((major, minor)) if minor.len() == 1 => format!("{major}{minor}"),
            Some(_) => return Err(wrong()),
            None => digits.to_owned(),
        };
        let number = number.parse().map_err(|_| wrong())?;
        if !(10..1000).contains(&number) {
            return Err(wrong());
        }
        Ok(Self { number, suffix })
    }

    /// Reads a list separated by commas, semicolons or blanks.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut list: Vec<Self> = Vec::new();
        for name in text.split([',', ';', ' ']).filter(|name| !name.is_empty()) {
            let architecture = Self::parse(name)?;
            if !list.contains(&architecture) {
                list.push(architecture);
            }
        }
        if list.is_empty() { Err("an empty list of compute capabilities".to_owned()) } else { Ok(list) }
    }
}

/// What one fatbin holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    pub machine_code: Vec<Architecture>,
    pub portable: Vec<Architecture>,
}

impl Targets {
    /// The default for a compiler that can make code for the capabilities `known`.
    pub fn default_for(known: &[u32]) -> Result<Self, String> {
        let pick = |wanted: &[u32]| -> Vec<Architecture> {
            let known = wanted.iter().filter(|number| known.contains(number));
            known.map(|&number| Architecture { number, suffix: None }).collect()
        };
        let targets = Self { machine_code: pick(&MACHINE_CODE), portable: pick(&PORTABLE) };
        if targets.machine_code.is_empty() {
            return Err(format!("this nvcc makes code for none of {MACHINE_CODE:?}; CUDA 12 or newer is needed"));
        }
        Ok(targets)
    }

    /// Exactly the capabilities asked for: machine code for each, and PTX where the capability has a portable form.
    pub fn exactly(wanted: Vec<Architecture>, known: &[u32]) -> Result<Self, String> {
        if let Some(unknown) = wanted.iter().find(|architecture| !known.contains(&architecture.number)) {
            return Err(format!("this nvcc makes no code for sm_{unknown}; it knows {known:?}"));
        }
        if let Some(old) = wanted.iter().find(|architecture| architecture.number < 80) {
            return Err(format!("sm_{old} is too old: the kernels need compute capability 8.0 or newer"));
        }
        let portable = wanted.iter().copied().filter(|architecture| architecture.suffix.is_none()).collect();
        Ok(Self { machine_code: wanted, portable })
    }

    /// nvcc's options for these targets.
    pub fn options(&self) -> Vec<String> {
        let is_alike = |a: &Architecture| *a == Architecture { number: ALIKE.1, suffix: None };
        let first = Architecture { number: ALIKE.0, suffix: None };
        let shares = self.machine_code.contains(&first);
        let form = |a: &Architecture| if shares && is_alike(a) { first } else { *a };
        let code = self.machine_code.iter().map(|a| format!("-gencode=arch=compute_{},code=sm_{a}", form(a)));
        let ptx = self.portable.iter().map(|a| format!("-gencode=arch=compute_{a},code=compute_{a}"));
        code.chain(ptx).collect()
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let code = self.machine_code.iter().map(|a| format!("sm_{a}"));
        let ptx = self.portable.iter().map(|a| format!("compute_{a}"));
        f.write_str(&code.chain(ptx).collect::<Vec<_>>().join(" "))
    }
}
