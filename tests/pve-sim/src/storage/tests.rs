#![allow(clippy::unwrap_used)]
use super::*;

const CFG: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent images,iso\n\ndir: off\n\tdisable\n\tpath /srv/off\n\ndir: far\n\tpath /srv/far\n\tnodes other\n\n";

struct Host {
    _folder: tempfile::TempDir,
    layout: NodeLayout,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(folder.path(), "pve1");
        fs::create_dir_all(layout.etc_pve()).unwrap();
        fs::write(layout.etc_pve().join("storage.cfg"), CFG).unwrap();
        Self { _folder: folder, layout }
    }

    fn storages(&self) -> Storages {
        Storages::load(&self.layout, 0.001).unwrap()
    }

    fn fault(&self, fault: StorageFault) {
        let faults = Faults { storages: [(String::from("local"), fault)].into(), ..Faults::default() };
        faults.store(&self.layout.faults()).unwrap();
    }
}

fn image(vmid: u32, format: &str) -> NewImage<'_> {
    NewImage { storage: "local", vmid, format, name: None, bytes: 8 << 20 }
}

fn quiet(_: &str) {}

#[test]
fn an_image_is_made_listed_and_removed_with_its_folder() {
    let host = Host::new();
    let storages = host.storages();
    let first = storages.allocate(&image(100, "raw"), &quiet).unwrap();
    let second = storages.allocate(&image(100, "qcow2"), &quiet).unwrap();
    assert_eq!((first.volid().as_str(), second.volid().as_str()), ("local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-1.qcow2"));
    let listed = storages.list("local", None, Some(100)).unwrap();
    assert_eq!(listed.iter().map(|e| e.info.size).collect::<Vec<_>>(), [8 << 20, 8 << 20]);
    for volume in [&first, &second] {
        storages.free(volume, &quiet).unwrap();
    }
    assert!(!host.layout.host_path("/var/lib/vz/images/100").exists());
}

#[test]
fn a_name_in_use_is_refused() {
    let host = Host::new();
    let storages = host.storages();
    let new = NewImage { name: Some("vm-100-a.raw"), ..image(100, "raw") };
    storages.allocate(&new, &quiet).unwrap();
    let error = storages.allocate(&new, &quiet).unwrap_err();
    assert_eq!(error.to_string(), "disk image '/var/lib/vz/images/100/vm-100-a.raw' already exists");
}

#[test]
fn a_base_image_with_linked_clones_is_kept() {
    let host = Host::new();
    let storages = host.storages();
    let volume = storages.allocate(&image(9000, "qcow2"), &quiet).unwrap();
    let base = storages.make_base(&volume, &quiet).unwrap();
    let clone = storages.linked_clone(&base, 100, &quiet).unwrap();
    assert_eq!(clone.volid(), "local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2");
    let error = storages.free(&base, &quiet).unwrap_err();
    assert_eq!(error.to_string(), "base volume '9000/base-9000-disk-0.qcow2' is still in use by linked clones");
    storages.free(&clone, &quiet).unwrap();
    storages.free(&base, &quiet).unwrap();
}

#[test]
fn storages_that_cannot_be_used_say_why() {
    let host = Host::new();
    for (id, text) in [
        ("gone", "storage 'gone' does not exist"),
        ("off", "storage 'off' is disabled"),
        ("far", "storage 'far' is not available on node 'pve1'"),
    ] {
        assert_eq!(host.storages().activate(id).unwrap_err().to_string(), text);
    }
    host.fault(StorageFault { offline: true, ..StorageFault::default() });
    let text = "unable to activate storage 'local' - directory is expected to be a mount point but is not mounted: '/var/lib/vz'";
    assert_eq!(host.storages().activate("local").unwrap_err().to_string(), text);
}

#[test]
fn a_copy_to_a_full_storage_fails_with_its_command() {
    let host = Host::new();
    let storages = host.storages();
    let from = storages.allocate(&image(100, "raw"), &quiet).unwrap();
    fs::write(storages.path(&from).unwrap(), vec![1u8; 1 << 20]).unwrap();
    let to = storages.allocate(&image(101, "raw"), &quiet).unwrap();
    host.fault(StorageFault { full_after_bytes: Some(1 << 20), ..StorageFault::default() });
    let lines = std::cell::RefCell::new(Vec::new());
    let error = storages.copy(&from, None, &to, &|line| lines.borrow_mut().push(line.to_owned())).unwrap_err().to_string();
    assert!(error.starts_with("copy failed: command '/usr/bin/qemu-img convert -p -n -f raw -O raw /var/lib/vz/images/100/"), "{error}");
    assert!(lines.borrow().last().unwrap().ends_with("No space left on device"), "{:?}", lines.borrow());
}

#[test]
fn a_lock_held_by_somebody_else_ends_in_a_time_out() {
    let host = Host::new();
    let storages = host.storages();
    let _held = storages.lock("local", &quiet).unwrap();
    let lines = std::cell::RefCell::new(Vec::new());
    let error = storages.allocate(&image(100, "raw"), &|line| lines.borrow_mut().push(line.to_owned())).unwrap_err();
    assert_eq!(error.to_string(), "can't lock file '/var/lock/pve-manager/pve-storage-local' - got timeout");
    assert_eq!(lines.into_inner(), ["trying to acquire lock..."]);
}
