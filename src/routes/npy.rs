//! The header of NumPy's npy format (versions 1 to 3): type, byte order, shape.

use crate::element::Element;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) element: Element,
    pub(super) big_endian: bool,
    pub(super) shape: Vec<usize>,
    /// Where the data begins.
    pub(super) data: usize,
}

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy's own limit was 32 until 2024, then 64; routes have 3 dimensions.
const MAX_DIMENSIONS: usize = 64;

/// Reads the header, or says what is wrong with it.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("is no npy file: it does not begin with \\x93NUMPY".into());
    }
    let truncated = || format!("is truncated in its npy header: {} bytes", bytes.len());
    let (major, minor) = (*bytes.get(6).ok_or_else(truncated)?, *bytes.get(7).ok_or_else(truncated)?);
    let (length, start): (usize, usize) = match major {
        1 => {
            let length = bytes.get(8..10).ok_or_else(truncated)?;
            (usize::from(u16::from_le_bytes([length[0], length[1]])), 10)
        }
        2 | 3 => {
            let length = bytes.get(8..12).ok_or_else(truncated)?;
            (u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize, 12)
        }
        _ => return Err(format!("has npy version {major}.{minor}, known are 1 to 3")),
    };
    let text = bytes.get(start..start.saturating_add(length)).ok_or_else(truncated)?;
    let text = std::str::from_utf8(text).map_err(|_| "has an npy header that is not text".to_owned())?;
    let (descr, fortran, shape) = dictionary(text)?;
    if fortran {
        return Err("is in Fortran order, needs C order".into());
    }
    let (element, big_endian) = dtype(&descr)?;
    Ok(Header { element, big_endian, shape, data: start + length })
}

/// `<u2` and the like. i8 is read as u8: its −1 is then the sentinel, as for every other type.
fn dtype(descr: &str) -> Result<(Element, bool), String> {
    let refused = || format!("holds {descr:?}, needs 1 to 8 byte integers (u1, u2, i1, i2, i4 or i8)");
    let mut chars = descr.chars();
    let order = chars.next().ok_or_else(refused)?;
    let element = match chars.as_str() {
        "u1" | "i1" => Element::U8,
        "u2" => Element::U16,
        "i2" => Element::I16,
        "i4" => Element::I32,
        "i8" => Element::I64,
        _ => return Err(refused()),
    };
    match order {
        '<' => Ok((element, false)),
        '>' => Ok((element, true)),
        '|' if element.size() == 1 => Ok((element, false)),
        _ => Err(refused()),
    }
}

/// The three entries of `{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4, 5), }`, in any order.
fn dictionary(text: &str) -> Result<(String, bool, Vec<usize>), String> {
    let mut rest = Rest(text);
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    rest.expect('{')?;
    while !rest.accept('}') {
        let key = rest.quoted()?;
        rest.expect(':')?;
        match key {
            "descr" => descr = Some(rest.quoted()?.to_owned()),
            "fortran_order" => fortran = Some(rest.boolean()?),
            "shape" => shape = Some(rest.tuple()?),
            other => return Err(format!("has an npy header with the unknown key {other:?}")),
        }
        if !rest.accept(',') {
            rest.expect('}')?;
            break;
        }
    }
    let missing = |key: &str| format!("has an npy header without {key}");
    Ok((
        descr.ok_or_else(|| missing("descr"))?,
        fortran.ok_or_else(|| missing("fortran_order"))?,
        shape.ok_or_else(|| missing("shape"))?,
    ))
}

/// What is left of the header's text.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn fault(&self, needed: &str) -> String {
        let found: String = self.0.chars().take(12).collect();
        format!("has a damaged npy header: {needed} expected at {found:?}")
    }

    fn accept(&mut self, c: char) -> bool {
        let rest = self.0.trim_start().strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.accept(c) { Ok(()) } else { Err(self.fault(&format!("{c:?}"))) }
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        let quote = if self.accept('"') { '"' } else { '\'' };
        if quote == '\'' {
            self.expect('\'')?;
        }
        let (inside, rest) = self.0.split_once(quote).ok_or_else(|| self.fault("a closing quote"))?;
        self.0 = rest;
        Ok(inside)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        let text = self.0.trim_start();
        for (word, value) in [("False", false), ("True", true)] {
            if let Some(rest) = text.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err(self.fault("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut numbers = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            if numbers.len() == MAX_DIMENSIONS {
                return Err(self.fault("the end of the shape"));
            }
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            numbers.push(text[..end].parse().map_err(|_| self.fault("a dimension"))?);
            self.0 = &text[end..];
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(numbers)
    }
}
