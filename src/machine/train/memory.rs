//! What the operating system says this process holds.

use crate::spec::units::Bytes;

/// Resident bytes now; zero where the system does not say.
pub fn resident() -> Bytes {
    status("VmRSS:")
}

/// Most resident bytes since the last reset.
pub fn peak() -> Bytes {
    status("VmHWM:")
}

/// Starts the peak anew from what is resident now, where the system allows it.
pub fn reset_peak() {
    // Without permission the peak of the whole process stands, which is larger: nothing is hidden.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// A line of the process's status, in KiB there.
fn status(key: &str) -> Bytes {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Bytes(kib.unwrap_or(0) * 1024)
}
