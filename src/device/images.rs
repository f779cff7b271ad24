//! The compiled kernels that the build script embedded.

/// One compiled file of `kernels/`.
#[derive(Clone, Copy)]
pub struct Image {
    /// The file, without its ending.
    pub name: &'static str,
    /// The kernels in it.
    pub kernels: &'static [&'static str],
    /// A fatbin.
    pub bytes: &'static [u8],
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image {{ {}: {:?}, {} bytes }}", self.name, self.kernels, self.bytes.len())
    }
}

mod table {
    #![allow(missing_docs, dead_code)]
    use super::Image;

    /// The driver reads 64-bit words of an image in place.
    #[repr(C, align(64))]
    struct Aligned<T: ?Sized>(T);

    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// The embedded images; none where the crate was built without nvcc.
pub fn images() -> &'static [Image] {
    table::IMAGES
}

/// The version of the compiler that made the images, as `13.0.88`; empty where there are none.
pub fn toolkit() -> &'static str {
    table::TOOLKIT
}

/// What the images hold code for, as `sm_80 sm_90 compute_80`; empty where there are none.
pub fn targets() -> &'static str {
    table::TARGETS
}

/// Why there are no images; empty where there are some.
pub fn absence() -> &'static str {
    table::ABSENCE
}
