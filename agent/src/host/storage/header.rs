//! What an image is, by its first bytes: read before any tool sees the file, since tools follow what an image says.

use pvelet_proto::reason;

/// How much of the beginning of an image is looked at: the largest cluster of a qcow2, in whose first its header must lie.
pub(super) const HEAD: usize = 2 << 20;
/// How much of its end: the footer of a VHD.
pub(super) const TAIL: usize = 512;

/// What an image was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Qcow2 {
        virtual_size: u64,
    },
    /// Nothing that is known: just bytes.
    Raw,
}

/// Why an image is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) why: String,
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason: reason::IMAGE_REFUSED, why: why.into() })
}

fn corrupt<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason: reason::IMAGE_CORRUPT, why: why.into() })
}

const QCOW: &[u8] = b"QFI\xfb";

/// Containers that are not imported: where their mark stands, the mark, and what to call them.
const CONTAINERS: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (0, b"<<< ", "a VDI image"),
    (64, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0, b"QED\0", "a QED image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (0, b"LUKS\xba\xbe", "a LUKS container"),
    (0, b"\x1f\x8b", "compressed by gzip"),
    (0, b"\xfd7zXZ\0", "compressed by xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (0, b"BZh", "compressed by bzip2"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (257, b"ustar", "a TAR archive (such as an OVA)"),
];

/// Marks at the very end.
const FOOTERS: &[(&[u8], &str)] = &[(b"conectix", "a VHD image"), (b"koly", "a DMG image")];

/// What an image of `size` bytes is, by its first bytes (`HEAD`, or all) and its last (`TAIL`, or all).
pub(super) fn look(head: &[u8], tail: &[u8], size: u64) -> Result<Found, Refusal> {
    if head.starts_with(QCOW) {
        return qcow2(head, size);
    }
    let container = CONTAINERS.iter().find(|(at, mark, _)| head.get(*at..).is_some_and(|h| h.starts_with(mark)));
    // A fixed VHD of some programs ends in 511 bytes.
    let last = |mark: &[u8]| tail.starts_with(mark) || tail.get(1..).is_some_and(|t| t.starts_with(mark));
    let footer = FOOTERS.iter().find(|(mark, _)| last(mark));
    if let Some(what) = container.map(|c| c.2).or(footer.map(|f| f.1)).or_else(|| descriptor(head)) {
        return refuse(format!("it is {what}; convert it to qcow2 or raw first, as with `qemu-img convert -O qcow2`"));
    }
    if size == 0 {
        return refuse("it is empty");
    }
    if !size.is_multiple_of(512) {
        return corrupt(format!(
            "it has {size} bytes, which is no whole number of sectors: it is no disk image, or was cut off; copy it again"
        ));
    }
    Ok(Found::Raw)
}

/// A VMDK descriptor may begin with comments and empty lines.
fn descriptor(head: &[u8]) -> Option<&'static str> {
    let text = &head[..head.len().min(4096)];
    let line = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).find(|l| !l.is_empty() && !l.starts_with(b"#"))?;
    let version = line.strip_prefix(b"version=")?;
    matches!(version, b"1" | b"2" | b"3").then_some("a VMDK descriptor")
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Types of header extensions (docs/interop/qcow2.txt of QEMU).
const END: u32 = 0;
const ENCRYPTION_HEADER: u32 = 0x0537_be77;
const DATA_FILE_NAME: u32 = 0x4441_5441;

fn qcow2(head: &[u8], size: u64) -> Result<Found, Refusal> {
    let cut = || Refusal { reason: reason::IMAGE_CORRUPT, why: "its qcow2 header is cut off; copy it again".into() };
    let word = |at| u32_at(head, at).ok_or_else(cut);
    let long = |at| u64_at(head, at).ok_or_else(cut);
    let version = match word(4)? {
        1 => return refuse("it is a QCOW1 image; convert it to qcow2 or raw first, as with `qemu-img convert -O qcow2`"),
        version @ (2 | 3) => version,
        other => return refuse(format!("it is of qcow2 version {other}, which is not known; convert it to version 3")),
    };
    if long(8)? != 0 || word(16)? != 0 {
        return refuse("it has a backing file; make it whole first: `qemu-img convert -O qcow2`");
    }
    let cluster_bits = word(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return corrupt(format!("its clusters have 2^{cluster_bits} bytes, which no qcow2 has; copy it again"));
    }
    if word(32)? != 0 {
        return refuse("it is encrypted; decrypt it first: `qemu-img convert`");
    }
    let virtual_size = long(24)?;
    if virtual_size == 0 {
        return refuse("it holds a disk of 0 bytes");
    }
    // Tables that end behind the file: it was cut off.
    let within = |at: u64, bytes: u64| at.checked_add(bytes).is_some_and(|end| end <= size);
    if !within(long(40)?, u64::from(word(36)?) * 8) || !within(long(48)?, u64::from(word(56)?) << cluster_bits) {
        return corrupt("its tables lie behind its end: it was cut off; copy it again");
    }
    let mut header = 72;
    if version == 3 {
        features(long(72)?)?;
        header = usize::try_from(word(100)?).map_err(|_| cut())?;
        if header < 104 || !header.is_multiple_of(8) || header > 1 << cluster_bits {
            return corrupt(format!("its header claims {header} bytes; copy it again"));
        }
    }
    let first = head.get(..(1 << cluster_bits).min(head.len())).unwrap_or(head);
    extensions(first.get(header..).ok_or_else(cut)?)?;
    Ok(Found::Qcow2 { virtual_size })
}

fn features(bits: u64) -> Result<(), Refusal> {
    if bits & CORRUPT != 0 {
        return corrupt("it is marked as damaged; repair it first: `qemu-img check -r all`");
    }
    if bits & DATA_FILE != 0 {
        return refuse("it keeps its data in another file; make it whole first: `qemu-img convert -O qcow2`");
    }
    let unknown = bits & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        return refuse(format!("it needs features that are not known (bits {unknown:#x}); convert it to a plain qcow2 first"));
    }
    Ok(())
}

fn extensions(mut rest: &[u8]) -> Result<(), Refusal> {
    // A header without room for an end mark has no extensions.
    while let (Some(kind), Some(length)) = (u32_at(rest, 0), u32_at(rest, 4)) {
        match kind {
            END => return Ok(()),
            DATA_FILE_NAME => return refuse("it names a file in which its data lies; make it whole first: `qemu-img convert -O qcow2`"),
            ENCRYPTION_HEADER => return refuse("it is encrypted; decrypt it first: `qemu-img convert`"),
            _ => {}
        }
        let padded = usize::try_from(length).ok().and_then(|l| l.checked_next_multiple_of(8)).and_then(|l| l.checked_add(8));
        match padded.and_then(|l| rest.get(l..)) {
            Some(next) => rest = next,
            None => return corrupt("an extension of its header reaches behind the header; copy it again"),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
