//! User data, on real files: where it is, where it is not, and that it goes.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use pvelet_proto::reason as reasons;
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    host::{
        pve::{
            StorageInfo, TaskEnd,
            fake::{Fault, Freeze},
        },
        storage::LocalStore,
    },
    vm::user_data::{LARGEST, Sweep},
};

const SECRET: &str = "#cloud-config\npassword: correct-horse-battery\n";
const OTHER: &str = "machine: {token: staple}";

/// A host with a folder for `local`.
struct Host {
    pve: FakePve,
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let pve = FakePve::new(NODE);
        pve.add_template(TEMPLATE, "");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("mnt/pve/local")).unwrap();
        Self { pve, dir }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn open_at(&self, state: &Path, storage: &str) -> (Arc<Operations>, Vms) {
        fs::create_dir_all(state).unwrap();
        let ops = Operations::open(operation::Settings::new(state), Arc::new(SystemClock)).unwrap();
        let settings = Settings {
            lock_pause: Duration::from_millis(20),
            lost_answer: Duration::from_secs(5),
            snippets_storage: storage.to_owned(),
            ..Settings::new(NODE, (200, 299), Mode::Manage)
        };
        let store = Arc::new(LocalStore::new(self.dir.path().to_owned(), "/proc".into()));
        let vms = Vms::new(Arc::new(self.pve.clone()), store, Arc::new(Bridges), Arc::clone(&ops), settings);
        (ops, vms)
    }

    fn open(&self) -> (Arc<Operations>, Vms) {
        self.open_at(&self.state(), "local")
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("mnt/pve/local/snippets")
    }

    /// Names of all that lies beside the images.
    fn files(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.folder()) else { return BTreeSet::new() };
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn cicustom(&self, vmid: u32) -> Option<String> {
        self.pve.vm(vmid).unwrap().keys.get("cicustom").cloned()
    }

    /// That nothing of the agent's own state holds what must not be there.
    fn state_is_free_of(&self, secret: &str) {
        for entry in fs::read_dir(self.state()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", path.display());
        }
    }
}

fn with(request_id: &str, data: Option<&str>) -> v1::CloneVmRequest {
    let mut request = clone_request(request_id, "a", false);
    let cloud_init = v1::CloudInit { user_data: data.map(|d| d.as_bytes().to_vec()), ..v1::CloudInit::default() };
    request.config.as_mut().unwrap().cloud_init = Some(cloud_init);
    request
}

fn configure(request_id: &str, vm: &v1::VmRef, cloud_init: v1::CloudInit) -> v1::ConfigureVmRequest {
    let config = v1::VmConfig { cloud_init: Some(cloud_init), ..v1::VmConfig::default() };
    v1::ConfigureVmRequest { meta: meta(request_id), vm: Some(vm.clone()), config: Some(config) }
}

fn given(data: &str) -> v1::CloudInit {
    v1::CloudInit { user_data: Some(data.as_bytes().to_vec()), ..v1::CloudInit::default() }
}

fn name(uuid: &str, data: &str) -> String {
    format!("pvelet-{uuid}-{}.yaml", hex::encode(Sha256::digest(data)))
}

async fn end(ops: &Operations, operation: Result<v1::Operation, Error>) -> v1::Operation {
    ops.wait(&operation.unwrap().name, Duration::from_secs(24 * 3600)).await.unwrap()
}

fn delete(vm: &v1::VmRef) -> v1::DeleteVmRequest {
    v1::DeleteVmRequest { meta: meta("delete"), vm: Some(vm.clone()), stop: true }
}

#[tokio::test(start_paused = true)]
async fn user_data_is_in_its_file_and_nowhere_else_and_goes_with_the_vm() {
    let host = Host::new();
    let (ops, vms) = host.open();
    let op = end(&ops, vms.clone_vm(&caller(), with("r", Some(SECRET))).await).await;
    succeeded(&op);
    let vm = op.target.clone().unwrap();
    assert_eq!(host.files(), [name(&vm.uuid, SECRET)].into());
    let file = host.folder().join(name(&vm.uuid, SECRET));
    assert_eq!(fs::read_to_string(&file).unwrap(), SECRET);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(host.cicustom(vm.vmid), Some(format!("user=local:snippets/{}", name(&vm.uuid, SECRET))));
    let shown = vms.get(&vm, None).await.unwrap();
    assert_eq!(shown.cloud_init.as_ref().unwrap().user_data_sha256, hex::encode(Sha256::digest(SECRET)));
    ops.flushed().await;
    host.state_is_free_of("correct-horse");
    for told in [format!("{op:?}"), format!("{shown:?}"), ops.audit_tail(100).unwrap().concat(), host.pve.log().concat()] {
        assert!(!told.contains("correct-horse"), "{told}");
    }
    // The same call is the same operation; another content makes it another call.
    let again = vms.clone_vm(&caller(), with("r", Some(SECRET))).await.unwrap();
    assert_eq!(again.name, op.name);
    assert_eq!(vms.clone_vm(&caller(), with("r", Some(OTHER))).await.unwrap_err().reason(), reasons::REQUEST_ID_REUSED);
    assert_eq!(host.files().len(), 1);
    let gone = end(&ops, vms.delete_vm(&caller(), delete(&vm)).await).await;
    succeeded(&gone);
    assert!(gone.warnings.is_empty() && host.files().is_empty(), "{gone:?} {:?}", host.files());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_is_refused_before_anything_is_made() {
    let host = Host::new();
    let reason_of = |result: Result<v1::Operation, Error>| result.unwrap_err();
    for (what, edit, reason, said) in [
        ("kind", (|s| s.kind = "lvmthin".into()) as fn(&mut StorageInfo), reasons::USER_DATA_STORAGE, "lvmthin"),
        ("content", |s| s.content = vec!["iso".into()], reasons::USER_DATA_STORAGE, "pvesm set other --content iso,snippets"),
        ("disabled", |s| s.enabled = false, reasons::STORAGE_OFFLINE, "disabled"),
        ("inactive", |s| s.active = false, reasons::STORAGE_OFFLINE, "not active"),
    ] {
        let mut before = None;
        host.pve.edit_storage("other", |s| {
            before = Some(s.clone());
            edit(s);
        });
        let error = reason_of(host.open_at(&host.dir.path().join(what), "other").1.clone_vm(&caller(), with(what, Some(SECRET))).await);
        assert!(error.reason() == reason && error.to_string().contains(said), "{what}: {error}");
        host.pve.edit_storage("other", |s| *s = before.unwrap());
    }
    let error = reason_of(host.open_at(&host.dir.path().join("nope"), "nope").1.clone_vm(&caller(), with("nope", Some(SECRET))).await);
    assert!(error.reason() == reasons::USER_DATA_STORAGE && error.to_string().contains("vm.snippets_storage"), "{error}");
    let (_ops, vms) = host.open();
    let large = "x".repeat(LARGEST + 1);
    let error = reason_of(vms.clone_vm(&caller(), with("large", Some(&large))).await);
    assert!(error.to_string().contains("config.cloud_init.user_data: it has 524289 bytes"), "{error}");
    let mut beside = with("beside", Some(SECRET));
    let cloud_init = beside.config.as_mut().unwrap().cloud_init.as_mut().unwrap();
    (cloud_init.user, cloud_init.ssh_keys) = ("ann".into(), vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE".into()]);
    let Error::Invalid(violations) = reason_of(vms.clone_vm(&caller(), beside).await) else { panic!() };
    assert_eq!(violations.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), ["config.cloud_init.user", "config.cloud_init.ssh_keys"]);
    host.pve.edit(TEMPLATE, |vm| drop(vm.keys.remove("ide2")));
    assert_eq!(reason_of(vms.clone_vm(&caller(), with("drive", Some(SECRET))).await).reason(), reasons::NO_CLOUD_INIT_DRIVE);
    assert_eq!((host.pve.vmids().len(), host.files().len()), (1, 0));
}

/// What a template has stays, but for the user data where that is given, and for another VM's secret in any case.
#[tokio::test(start_paused = true)]
async fn a_template_s_own_cicustom_is_the_template_s_business_and_another_vm_s_secret_is_not() {
    let theirs = "user=local:snippets/u.yaml,vendor=local:snippets/v.yaml";
    let secret = format!("vendor=local:snippets/v.yaml,user=local:snippets/{}", name("57c0d1db-257b-4aa1-b83d-bfd147865654", OTHER));
    for (template, data, kept) in [
        (theirs, None, Some(theirs)),
        (theirs, Some(""), Some("vendor=local:snippets/v.yaml")),
        (theirs, Some(SECRET), Some("vendor=local:snippets/v.yaml,user=OURS")),
        (secret.as_str(), None, Some("vendor=local:snippets/v.yaml")),
        (secret.as_str(), Some(SECRET), Some("vendor=local:snippets/v.yaml,user=OURS")),
        ("user=local:snippets/u.yaml", Some(""), None),
    ] {
        let host = Host::new();
        host.pve.edit(TEMPLATE, |vm| drop(vm.keys.insert("cicustom".into(), template.into())));
        let (ops, vms) = host.open();
        let op = end(&ops, vms.clone_vm(&caller(), with("r", data)).await).await;
        succeeded(&op);
        let vm = op.target.unwrap();
        let ours = format!("local:snippets/{}", name(&vm.uuid, SECRET));
        assert_eq!(host.cicustom(vm.vmid), kept.map(|text| text.replace("OURS", &ours)), "{template} {data:?}");
        assert_eq!(host.cicustom(TEMPLATE).as_deref(), Some(template));
    }
}

#[tokio::test(start_paused = true)]
async fn other_user_data_replaces_the_former_once_nothing_names_that_any_more() {
    let host = Host::new();
    let (ops, vms) = host.open();
    let vm = end(&ops, vms.clone_vm(&caller(), with("r", Some(SECRET))).await).await.target.unwrap();
    let (old, new) = (name(&vm.uuid, SECRET), name(&vm.uuid, OTHER));
    // Settings beside it leave it alone; those that cannot count are told.
    let user = v1::CloudInit { user: "ann".into(), ..v1::CloudInit::default() };
    let op = end(&ops, vms.configure_vm(&caller(), configure("user", &vm, user)).await).await;
    succeeded(&op);
    assert!(op.warnings[0].contains("do not count") && host.cicustom(vm.vmid).unwrap().contains(&old), "{op:?}");
    // A copy that somebody made by hand starts from the same file.
    let copy = host.cicustom(vm.vmid).unwrap();
    host.pve.add_vm(250, &[("cicustom", &copy)]);
    succeeded(&end(&ops, vms.configure_vm(&caller(), configure("other", &vm, given(OTHER))).await).await);
    assert_eq!(host.cicustom(vm.vmid), Some(format!("user=local:snippets/{new}")));
    assert_eq!(host.files(), [old.clone(), new.clone()].into());
    host.pve.remove_vm(250);
    // Asked again, nothing is written, and what was in use is seen to.
    succeeded(&end(&ops, vms.configure_vm(&caller(), configure("again", &vm, given(OTHER))).await).await);
    assert_eq!(host.files(), [new].into());
    succeeded(&end(&ops, vms.configure_vm(&caller(), configure("none", &vm, given(""))).await).await);
    assert_eq!((host.cicustom(vm.vmid), host.files().len()), (None, 0));
    ops.flushed().await;
    host.state_is_free_of("staple");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_somebody_else_was_faster_than_leaves_the_former_user_data() {
    let host = Host::new();
    let (ops, vms) = host.open();
    let vm = end(&ops, vms.clone_vm(&caller(), with("r", Some(SECRET))).await).await.target.unwrap();
    host.pve.fault(Fault::LockTimeout { what: format!("VM {}", vm.vmid) });
    let begun = vms.configure_vm(&caller(), configure("c", &vm, given(OTHER))).await;
    host.pve.edit(vm.vmid, |vm| drop(vm.keys.insert("cores".into(), "3".into())));
    assert_eq!(reason(&end(&ops, begun).await), reasons::CONFIG_CHANGED);
    assert_eq!(host.files(), [name(&vm.uuid, SECRET)].into());
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_fails_leaves_no_user_data() {
    let host = Host::new();
    let (ops, vms) = host.open();
    host.pve.fault(Fault::TaskEnd { kind: "resize", end: TaskEnd::Error("no".into()), effect: false });
    let mut request = with("r", Some(SECRET));
    request.config.as_mut().unwrap().boot_disk_bytes = Some(2 << 30);
    let op = end(&ops, vms.clone_vm(&caller(), request).await).await;
    assert_eq!(op.state(), v1::OperationState::Failed);
    assert!(host.pve.vmids().len() == 1 && host.files().is_empty() && op.warnings.is_empty(), "{op:?} {:?}", host.files());
    // Where it cannot be written, no VM is left either.
    fs::create_dir_all(host.folder().parent().unwrap()).unwrap();
    let _ = fs::remove_dir(host.folder());
    fs::write(host.folder(), "no folder").unwrap();
    let op = end(&ops, vms.clone_vm(&caller(), with("full", Some(SECRET))).await).await;
    assert_eq!((reason(&op).as_str(), host.pve.vmids().len()), (reasons::STORAGE_FAILED, 1), "{op:?}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

#[test]
fn what_is_left_of_a_vm_that_is_gone_is_removed_when_it_is_ours_and_unused() {
    let host = Host::new();
    let stranger = name("57c0d1db-257b-4aa1-b83d-bfd147865654", SECRET);
    let made: Vec<v1::VmRef> = runtime().block_on(async {
        let (ops, vms) = host.open();
        vms.settle().await;
        let mut made = Vec::new();
        for id in ["plain", "changed", "copied", "late"] {
            made.push(end(&ops, vms.clone_vm(&caller(), with(id, Some(SECRET))).await).await.target.unwrap());
        }
        // Removed by somebody else while the agent runs.
        host.pve.remove_vm(made[0].vmid);
        host.pve.until(|_| !host.files().contains(&name(&made[0].uuid, SECRET))).await;
        made
    });
    let file = |i: usize| name(&made[i].uuid, SECRET);
    fs::write(host.folder().join("somebody.yaml"), "theirs").unwrap();
    // Of another cluster that has the same storage, for example.
    fs::write(host.folder().join(&stranger), SECRET).unwrap();
    // What somebody has written into it is theirs.
    fs::write(host.folder().join(file(1)), "edited").unwrap();
    // A copy needs it.
    let copy = host.cicustom(made[2].vmid).unwrap();
    host.pve.add_vm(250, &[("cicustom", &copy)]);
    // Removed while no agent runs; without quorum nothing is concluded from that.
    made[1..].iter().for_each(|vm| host.pve.remove_vm(vm.vmid));
    host.pve.set_quorate(false);
    runtime().block_on(async {
        let (_ops, vms) = host.open();
        vms.settle().await;
        assert!(vms.inner.sweep_user_data(Sweep::All).await.is_err());
        assert!(host.files().contains(&file(3)));
        host.pve.set_quorate(true);
        host.pve.until(|_| !host.files().contains(&file(3))).await;
        assert_eq!(host.files(), [file(1), file(2), stranger.clone(), "somebody.yaml".to_owned()].into());
        host.pve.remove_vm(250);
        vms.inner.sweep_user_data(Sweep::All).await.unwrap();
        assert!(!host.files().contains(&file(2)) && host.files().len() == 3);
    });
}

/// Dies at any call of PVE while `begin` is carried out, and is started again. Returns how it ended; `None` when it was not begun.
fn dies<F: Future<Output = Result<v1::Operation, Error>>>(
    host: &Host,
    freeze: Freeze,
    request_id: &str,
    begin: impl FnOnce(Vms) -> F,
) -> Option<v1::Operation> {
    host.pve.freeze(freeze);
    runtime().block_on(async {
        let (ops, vms) = host.open();
        let begun = async {
            let op = begin(vms).await.unwrap();
            ops.wait(&op.name, Duration::from_secs(3600)).await.unwrap();
        };
        tokio::select! { () = begun => {} () = host.pve.frozen() => {} }
        ops.flushed().await;
    });
    host.pve.thaw();
    host.pve.run_tasks();
    runtime().block_on(async {
        let (ops, vms) = host.open();
        vms.settle().await;
        let list = v1::ListOperationsRequest { request_id: request_id.into(), tenant: "team-a".into(), ..Default::default() };
        let op = ops.list(&list).unwrap().operations.pop()?;
        Some(ops.wait(&op.name, Duration::from_secs(24 * 3600)).await.unwrap())
    })
}

fn freezes(last: u64) -> impl Iterator<Item = Freeze> {
    (0..last).flat_map(|n| [Freeze::Before(n), Freeze::After(n)])
}

#[test]
fn a_clone_with_user_data_is_whole_or_nothing_wherever_the_agent_dies() {
    let (mut lost, mut made) = (0, 0);
    for freeze in freezes(12) {
        let host = Host::new();
        let op = dies(&host, freeze, "r", |vms| async move { vms.clone_vm(&caller(), with("r", Some(SECRET))).await });
        host.state_is_free_of("correct-horse");
        let Some(op) = op else { continue };
        let vm = op.target.clone().unwrap();
        if op.state() == v1::OperationState::Succeeded {
            made += 1;
            assert_eq!(host.files(), [name(&vm.uuid, SECRET)].into(), "{freeze:?}");
            assert!(host.cicustom(vm.vmid).unwrap().ends_with(&name(&vm.uuid, SECRET)), "{freeze:?}");
        } else {
            lost += u32::from(reason(&op) == reasons::USER_DATA_LOST);
            assert!([reasons::USER_DATA_LOST, reasons::AGENT_RESTARTED].contains(&reason(&op).as_str()), "{freeze:?}: {op:?}");
            assert!(host.files().is_empty() && host.pve.vmids().len() == 1 && op.warnings.is_empty(), "{freeze:?}: {op:?}");
        }
    }
    assert!(lost > 0 && made > 0, "{lost} {made}");
}

#[test]
fn user_data_is_the_former_or_the_new_and_goes_with_its_vm_wherever_the_agent_dies() {
    let (mut former, mut replaced) = (0, 0);
    for freeze in freezes(10) {
        let host = Host::new();
        let vm = runtime().block_on(async {
            let (ops, vms) = host.open();
            end(&ops, vms.clone_vm(&caller(), with("r", Some(SECRET))).await).await.target.unwrap()
        });
        let change = configure("c", &vm, given(OTHER));
        let op = dies(&host, freeze, "c", |vms| async move { vms.configure_vm(&caller(), change).await });
        let new = op.as_ref().is_some_and(|op| op.state() == v1::OperationState::Succeeded);
        (former, replaced) = (former + u32::from(!new), replaced + u32::from(new));
        let expected = name(&vm.uuid, if new { OTHER } else { SECRET });
        assert_eq!(host.files(), [expected.clone()].into(), "{freeze:?}: {op:?}");
        assert!(host.cicustom(vm.vmid).unwrap().ends_with(&expected), "{freeze:?}: {op:?}");
        if let Some(op) = op.filter(|_| !new) {
            assert_eq!(reason(&op), reasons::USER_DATA_LOST, "{freeze:?}");
        }
        let gone = dies(&host, freeze, "delete", |vms| {
            let request = delete(&vm);
            async move { vms.delete_vm(&caller(), request).await }
        });
        if let Some(gone) = gone {
            succeeded(&gone);
            assert!(host.files().is_empty() && gone.warnings.is_empty(), "{freeze:?}: {gone:?}");
        }
    }
    assert!(former > 0 && replaced > 0, "{former} {replaced}");
}
