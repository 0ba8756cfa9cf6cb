//! The storages beside PVE, put to the test with real tools and real data: one list of cases for every kind of storage. Made to be run as
//! root in a throw-away guest; nothing here needs the checkout.

mod cases;
mod copies;
mod place;

use std::{
    fs,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use pvelet_agent::host::storage::{At, Copied, LocalStore, Source, VolumeStore};
use tokio::sync::mpsc;

use place::Place;

/// VMIDs of the volumes that are made: the second is for renames.
const VMIDS: [u32; 2] = [9100, 9101];
const MIB: u64 = 1 << 20;

type Case = fn(Arc<Lab>, Place) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// A case on one storage, by its name.
macro_rules! case {
    ($module:ident :: $name:ident) => {
        (stringify!($name), (|lab, place| Box::pin($module::$name(lab, place))) as Case)
    };
}

const CASES: &[(&str, Case)] = &[
    case!(cases::a_storage_that_is_not_there_is_told_as_offline),
    case!(cases::labels_are_read_back_rewritten_and_removed),
    case!(cases::labels_survive_a_rename),
    case!(cases::a_rename_goes_there_and_back_and_may_be_repeated),
    case!(cases::a_rename_never_replaces_a_volume),
    case!(cases::growing_keeps_the_bytes_and_the_rest_is_zero),
    case!(cases::snapshot_and_roll_back_keep_every_byte),
    case!(cases::a_roll_back_keeps_the_present_label),
    case!(cases::a_roll_back_that_was_cut_off_is_done_again),
    case!(cases::snapshots_are_listed_oldest_first_and_removed),
    case!(cases::an_older_snapshot_is_brought_back_or_refused),
    case!(copies::a_volume_is_copied_to_a_larger_one),
    case!(copies::a_snapshot_is_copied_to_a_larger_volume),
    case!(copies::a_copy_into_a_used_target_leaves_zeros_behind_the_source),
    case!(copies::a_copy_into_a_smaller_target_is_refused),
    case!(copies::an_inactive_volume_is_copied),
    case!(copies::an_image_is_imported),
    case!(copies::a_copy_to_a_full_target_leaves_the_source_intact),
    case!(copies::a_copy_to_a_full_pool_that_queues_ends_as_well),
    case!(copies::a_killed_copy_is_found_as_a_writer),
];

/// What the cases work with.
struct Lab {
    store: LocalStore,
    /// A folder for images and the like.
    work: tempfile::TempDir,
    next: AtomicU32,
    made: Mutex<Vec<(Place, String)>>,
}

impl Lab {
    /// A new volume of `bytes`; it is removed after the case.
    fn volume(&self, place: &Place, bytes: u64) -> At {
        let name = place.name(VMIDS[0], &format!("test-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        place.allocate(&name, bytes);
        self.note(place, &name);
        place.at(&name)
    }

    /// A volume of that name is to be removed after the case.
    fn note(&self, place: &Place, name: &str) {
        self.made.lock().unwrap().push((place.clone(), name.to_owned()));
    }

    /// A new volume of 8 MiB with data, and its bytes.
    fn filled(&self, place: &Place) -> (At, Vec<u8>) {
        let (volume, bytes) = (self.volume(place, 8 * MIB), content(8 * MIB));
        place.write(&volume, &bytes, self.work.path());
        (volume, bytes)
    }

    /// The bytes of a volume.
    fn read(&self, place: &Place, volume: &At) -> Vec<u8> {
        place.read(volume, self.work.path())
    }

    /// Copies, and checks that progress was told to its end.
    async fn copy(&self, from: &Source, to: &At) -> Result<(), pvelet_agent::error::Error> {
        let (sender, mut told) = mpsc::unbounded_channel();
        self.store.copy(from, to, sender).await?;
        let mut all: Vec<Copied> = Vec::new();
        while let Ok(one) = told.try_recv() {
            all.push(one);
        }
        let last = all.last().expect("progress is told");
        assert!(last.done == last.total && last.total > 0 && all.is_sorted_by_key(|c| c.done), "{all:?}");
        Ok(())
    }

    fn clean(&self) {
        for (place, name) in self.made.lock().unwrap().drain(..) {
            place.free(&name);
        }
    }
}

/// Random bytes with holes of zeros in them and at the end.
fn content(bytes: u64) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(bytes).unwrap()];
    let mib = usize::try_from(MIB).unwrap();
    for (n, chunk) in all.chunks_mut(mib).enumerate() {
        if n % 4 != 2 && (n + 1) * mib < usize::try_from(bytes).unwrap() {
            random(chunk);
        }
    }
    all
}

fn random(buffer: &mut [u8]) {
    use std::io::Read;
    fs::File::open("/dev/urandom").unwrap().read_exact(buffer).unwrap();
}

/// Fails unless `found` begins with `expected` and is zero behind it. Says where they differ rather than printing megabytes.
fn same(expected: &[u8], found: &[u8], what: &str) {
    assert!(found.len() >= expected.len(), "{what}: {} bytes of {}", found.len(), expected.len());
    let (head, rest) = found.split_at(expected.len());
    // Slices compare at the machine's speed also in a debug build, which runs emulated.
    if head != expected {
        panic!("{what}: differs at {:?}", expected.iter().zip(head).position(|(a, b)| a != b));
    }
    let zeros = [0; 4096];
    let zero = rest.chunks(zeros.len()).all(|chunk| *chunk == zeros[..chunk.len()]);
    assert!(zero, "{what}: what lies behind the {} bytes is not zero", expected.len());
}

/// Runs all cases on all storages; how many passed and failed.
pub async fn run(specs: &[String]) -> (u32, u32) {
    let work = tempfile::Builder::new().prefix("volume-store").tempdir_in("/var/tmp").unwrap();
    let store = LocalStore::new("/".into(), "/proc".into());
    let lab = Arc::new(Lab { store, work, next: AtomicU32::new(0), made: Mutex::default() });
    let places: Vec<Place> = specs.iter().flat_map(|spec| Place::parse(spec)).collect();
    let (mut passed, mut failed) = (0, 0);
    let mut count = |label: String, name: &str, result: Result<(), tokio::task::JoinError>| {
        lab.clean();
        match result {
            Ok(()) => passed += 1,
            Err(_) => failed += 1,
        }
        println!("{} {label} {name}", if result.is_ok() { "ok" } else { "FAILED" });
    };
    for place in &places {
        for (name, case) in CASES {
            let result = tokio::spawn(case(lab.clone(), place.clone())).await;
            count(place.label(), name, result);
        }
    }
    for from in &places {
        for to in places.iter().filter(|to| to.label() != from.label()) {
            let result = tokio::spawn(copies::a_volume_is_copied_across(lab.clone(), from.clone(), to.clone())).await;
            count(format!("{}->{}", from.label(), to.label()), "a_volume_is_copied_across", result);
        }
    }
    (passed, failed)
}

/// The helper that is killed: copies one volume into another and prints a line when it is done.
pub async fn copy_for_a_killed_agent(spec: &str, format: &str, from: &str, to: &str) {
    let place = Place::parse(spec).into_iter().find(|p| p.format == format).unwrap();
    let source = Source::Volume { at: place.at(from), snapshot: None };
    let (sender, _told) = mpsc::unbounded_channel();
    LocalStore::new(PathBuf::from("/"), "/proc".into()).copy(&source, &place.at(to), sender).await.unwrap();
    println!("copied");
}
