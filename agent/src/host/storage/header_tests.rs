use proptest::prelude::*;

use super::*;

const REFUSED: &str = reason::IMAGE_REFUSED;
const DAMAGED: &str = reason::IMAGE_CORRUPT;

/// The first cluster of a sound qcow2 of version 3.
fn sound() -> Vec<u8> {
    let mut head = vec![0; 65536];
    head[..4].copy_from_slice(QCOW);
    for (at, value) in [(4, 3), (20, 16), (36, 1), (56, 1), (96, 4), (100, 112)] {
        put(&mut head, at, &u32::to_be_bytes(value));
    }
    for (at, value) in [(24, 1 << 30), (40, 3 << 16), (48, 1 << 16)] {
        put(&mut head, at, &u64::to_be_bytes(value));
    }
    head
}

fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    head[at..at + bytes.len()].copy_from_slice(bytes);
}

const SIZE: u64 = 4 << 16;

#[test]
fn a_sound_qcow2_is_taken() {
    assert_eq!(look(&sound(), &[0; 512], SIZE), Ok(Found::Qcow2 { virtual_size: 1 << 30 }));
    let mut old = sound();
    put(&mut old, 4, &2_u32.to_be_bytes());
    assert_eq!(look(&old, &[], SIZE), Ok(Found::Qcow2 { virtual_size: 1 << 30 }));
    let mut extended = sound();
    put(&mut extended, 72, &(DIRTY | COMPRESSION | EXTENDED_L2).to_be_bytes());
    put(&mut extended, 112, &0x6803_f857_u32.to_be_bytes());
    put(&mut extended, 116, &47_u32.to_be_bytes());
    assert_eq!(look(&extended, &[], SIZE), Ok(Found::Qcow2 { virtual_size: 1 << 30 }));
}

#[test]
fn a_qcow2_that_refers_to_something_or_is_not_understood_is_refused() {
    let long = |v: u64| v.to_be_bytes().to_vec();
    let word = |v: u32| v.to_be_bytes().to_vec();
    let extension = |kind: u32, length: u32| [word(kind), word(length)].concat();
    let cases: Vec<(&str, usize, Vec<u8>, &str)> = vec![
        ("version 1", 4, word(1), REFUSED),
        ("version 4", 4, word(4), REFUSED),
        ("a backing file", 8, long(200), REFUSED),
        ("the length of a backing file's name", 16, word(11), REFUSED),
        ("a cluster too small", 20, word(8), DAMAGED),
        ("a cluster too large", 20, word(22), DAMAGED),
        ("a shift that overflows", 20, word(u32::MAX), DAMAGED),
        ("no size", 24, long(0), REFUSED),
        ("AES encryption", 32, word(1), REFUSED),
        ("LUKS encryption", 32, word(2), REFUSED),
        ("an L1 table behind the end", 40, long(SIZE), DAMAGED),
        ("an L1 table that overflows", 40, long(u64::MAX), DAMAGED),
        ("a huge L1 table", 36, word(u32::MAX), DAMAGED),
        ("a refcount table behind the end", 48, long(SIZE), DAMAGED),
        ("the mark of damage", 72, long(CORRUPT), DAMAGED),
        ("a data file", 72, long(DATA_FILE), REFUSED),
        ("an unknown feature", 72, long(1 << 5), REFUSED),
        ("the last unknown feature", 72, long(1 << 63), REFUSED),
        ("a short header", 100, word(72), DAMAGED),
        ("a huge header", 100, word(u32::MAX), DAMAGED),
        ("an odd header", 100, word(107), DAMAGED),
        ("a data file's name", 112, extension(DATA_FILE_NAME, 8), REFUSED),
        ("an encryption header", 112, extension(ENCRYPTION_HEADER, 16), REFUSED),
        (
            "a data file's name behind another extension",
            112,
            [extension(0x6803_f857, 3), long(0), extension(DATA_FILE_NAME, 4)].concat(),
            REFUSED,
        ),
        ("an endless extension", 112, extension(0x6803_f857, u32::MAX), DAMAGED),
    ];
    for (what, at, bytes, reason) in cases {
        let mut head = sound();
        put(&mut head, at, &bytes);
        let refusal = look(&head, &[], SIZE).expect_err(what);
        assert_eq!(refusal.reason, reason, "{what}: {}", refusal.why);
    }
}

#[test]
fn a_qcow2_that_was_cut_off_is_corrupt() {
    let head = sound();
    for length in [4, 8, 20, 71, 80, 103, 111] {
        let refusal = look(&head[..length], &[], length as u64).expect_err("cut off");
        assert_eq!(refusal.reason, DAMAGED, "{length}: {}", refusal.why);
    }
}

#[test]
fn other_containers_are_refused_with_what_to_do() {
    for (at, mark, _) in CONTAINERS {
        let mut head = vec![0; 4096];
        put(&mut head, *at, mark);
        let refusal = look(&head, &[0; 512], 4096).expect_err("a container");
        assert!(refusal.reason == REFUSED && refusal.why.contains("convert it"), "{refusal:?}");
    }
    for text in ["# Disk DescriptorFile\nversion=1", "# c\n\n # d\r\nversion=3\r\n"] {
        let mut head = text.as_bytes().to_vec();
        head.resize(512, b' ');
        assert_eq!(look(&head, &[0; 512], 512).expect_err("a descriptor").reason, REFUSED);
    }
    for (mark, shift) in [(&b"conectix"[..], 0), (b"conectix", 1), (b"koly", 0)] {
        let mut tail = vec![0; 512];
        put(&mut tail, shift, mark);
        assert_eq!(look(&[0; 512], &tail, 1 << 20).expect_err("a footer").reason, REFUSED);
    }
}

#[test]
fn bytes_of_whole_sectors_are_a_raw_image() {
    assert_eq!(look(&[0xeb; 1024], &[0; 512], 1024), Ok(Found::Raw));
    assert_eq!(look(b"root:x:0:0:", b"root:x:0:0:", 11).expect_err("text").reason, DAMAGED);
    assert_eq!(look(&[], &[], 0).expect_err("empty").reason, REFUSED);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048), size: u64) {
        let _ = look(&bytes, &bytes, size);
    }

    #[test]
    fn no_change_of_a_sound_header_makes_the_parser_panic(changes in proptest::collection::vec((4_usize..160, any::<u8>()), 1..24), size: u64, length in 0_usize..65536) {
        let mut head = sound();
        for (at, byte) in changes {
            head[at] = byte;
        }
        let _ = look(&head[..length], &[], size);
    }
}
