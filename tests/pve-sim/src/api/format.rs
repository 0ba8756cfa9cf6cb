//! Formats of parameters, with PVE's texts for what does not fit.

/// A VMID.
pub(super) fn vmid(text: &str) -> Result<(), String> {
    let fits = text.len() >= 3 && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if fits { Ok(()) } else { Err(String::from("value does not look like a valid VM ID")) }
}
