//! Memory: taking page faults ahead of need.

use super::{Result, check};

/// How a page is to be touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    Read,
    Write,
}

/// Takes the faults of `len` bytes from `address`, a page's, on.
///
/// # Errors
/// `ENOMEM` where nothing is mapped, `EINVAL` where the mapping does not allow it.
pub fn populate(address: usize, len: usize, touch: Touch) -> Result<()> {
    let advice = match touch {
        Touch::Read => libc::MADV_POPULATE_READ,
        Touch::Write => libc::MADV_POPULATE_WRITE,
    };
    // SAFETY: populating changes no content: it takes the faults that a read, or a
    // write of the same value, would take. Where nothing is mapped it fails.
    let done = unsafe { libc::madvise(address as *mut libc::c_void, len, advice) };
    check("madvise", done.into()).map(drop)
}
