//! Memory: taking page faults ahead of need, and giving pages back.

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

/// Has the allocator give each block of `bytes` or more back to the kernel when it is freed.
///
/// Without this glibc raises that bound to the size of the largest block that was freed, up to
/// 32 MiB, and keeps what is smaller. False where the allocator is another.
pub fn give_back_blocks_from(bytes: i32) -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `mallopt` takes two numbers; it locks the allocator itself and may be called at any time.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    {
        let _ = bytes;
        false
    }
}

/// Gives the pages of free memory that the allocator keeps back to the kernel. Takes milliseconds.
pub fn give_back_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes a number; it locks the allocator itself, gives back only pages
    // that no block is on, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
