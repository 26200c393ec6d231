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

/// Memory of the machine in total, and what of it programs could still have; zero where the system does not say.
pub fn of_machine() -> (Bytes, Bytes) {
    let line = |key| line("/proc/meminfo", key);
    (line("MemTotal:"), line("MemAvailable:"))
}

/// A line of the process's status.
fn status(key: &str) -> Bytes {
    line("/proc/self/status", key)
}

/// A line of a file of the system's, in KiB there.
fn line(path: &str, key: &str) -> Bytes {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Bytes(kib.unwrap_or(0) * 1024)
}
