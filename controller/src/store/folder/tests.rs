#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::timeout};

use super::FolderStore;
use crate::{
    kind::{ABANDON, Host, Machine, MachineStatus, ObjectKey, ObjectRef, PveMachine},
    store::{Store, StoreError},
};

const DEADLINE: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_millis(30);

struct Folder {
    dir: tempfile::TempDir,
    store: Arc<FolderStore>,
    changes: mpsc::UnboundedReceiver<ObjectRef>,
}

fn manifest(name: &str, extra: &str) -> String {
    format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: {name}}}\nspec: {{source: {{template: 9000}}{extra}}}\n")
}

fn marker(name: &str) -> String {
    format!(
        "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata: {{name: {name}}}\nspec: {{address: 'h:1', cluster: c, node: {name}}}\n"
    )
}

impl Folder {
    async fn with(files: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self::open(dir).await
    }

    async fn open(dir: tempfile::TempDir) -> Self {
        let store = FolderStore::open_with_grace(dir.path(), GRACE).await.unwrap();
        let changes = store.watch();
        Self { dir, store, changes }
    }

    /// Closes and opens again, as a restart does.
    async fn reopen(self) -> Self {
        let Self { dir, store, changes } = self;
        let weak = Arc::downgrade(&store);
        drop((store, changes));
        while weak.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
        Self::open(dir).await
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    async fn get(&self, name: &str) -> Option<PveMachine> {
        self.store.get::<Machine>(&ObjectKey::named(name)).await.unwrap()
    }

    async fn until(&mut self, name: &str, wanted: impl Fn(Option<&PveMachine>) -> bool) -> Option<PveMachine> {
        timeout(DEADLINE, async {
            loop {
                let now = self.get(name).await;
                if wanted(now.as_ref()) {
                    return now;
                }
                self.changes.recv().await.unwrap();
            }
        })
        .await
        .unwrap()
    }

    /// Waits until everything written so far has been read, and every grace time that began before has passed.
    async fn settled(&self, round: u32) {
        for i in 0..3 {
            let name = format!("marker-{round}-{i}");
            self.write(&format!("{name}.yaml"), &marker(&name));
            let mut changes = self.store.watch();
            timeout(DEADLINE, async {
                while self.store.get::<Host>(&ObjectKey::named(&name)).await.unwrap().is_none() {
                    changes.recv().await.unwrap();
                }
                fs::remove_file(self.path().join(format!("{name}.yaml"))).unwrap();
                // It goes after its grace time, which began after all others.
                while self.store.get::<Host>(&ObjectKey::named(&name)).await.unwrap().is_some() {
                    changes.recv().await.unwrap();
                }
            })
            .await
            .unwrap();
        }
    }

    /// As a reconciler does before it acts.
    async fn hold(&self, name: &str) -> PveMachine {
        let machine = self.get(name).await.unwrap();
        let mut machine = self.store.set_finalizers(&machine, vec!["test".into()]).await.unwrap();
        machine.status.attempt = 1;
        self.store.update_status(&machine).await.unwrap()
    }
}

#[tokio::test]
async fn a_new_manifest_is_seen_with_a_uid_that_survives_restarts() {
    let mut folder = Folder::with(&[]).await;
    folder.write("web.yaml", &format!("{}---\n{}", manifest("web-1", ""), manifest("web-2", "")));
    folder.until("web-2", |m| m.is_some()).await;
    let before = folder.hold("web-1").await;
    assert_eq!(before.metadata.generation, 1);
    let folder = folder.reopen().await;
    let after = folder.get("web-1").await.unwrap();
    assert_eq!((after.metadata.uid, after.status.attempt), (before.metadata.uid, 1));
}

#[tokio::test]
async fn the_generation_grows_with_the_spec_alone() {
    let mut folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    folder.write("web.yaml", &manifest("web-1", ", cores: 2"));
    let changed = folder.until("web-1", |m| m.is_some_and(|m| m.metadata.generation == 2)).await.unwrap();
    folder.write("web.yaml", &manifest("web-1", ", cores: 2").replace("{name: web-1}", "{name: web-1, labels: {a: b}}"));
    let labelled = folder.until("web-1", |m| m.is_some_and(|m| m.metadata.labels.contains_key("a"))).await.unwrap();
    assert_eq!((labelled.metadata.generation, labelled.metadata.uid), (2, changed.metadata.uid));
}

#[tokio::test]
async fn a_write_on_an_old_version_is_refused() {
    let folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    let old = folder.get("web-1").await.unwrap();
    folder.hold("web-1").await;
    let mut late = old.clone();
    late.status.attempt = 9;
    assert!(matches!(folder.store.update_status(&late).await, Err(StoreError::Conflict(_))));
    assert_eq!(folder.get("web-1").await.unwrap().status.attempt, 1);
}

#[tokio::test]
async fn an_unchanged_status_writes_nothing() {
    let folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    let stored = folder.hold("web-1").await;
    let path = folder.path().join("pvemachine.web-1.status.yaml");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let again = folder.store.update_status(&stored).await.unwrap();
    assert_eq!(again.metadata.resource_version, stored.metadata.resource_version);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}

#[tokio::test]
async fn a_removed_manifest_deletes_once_the_finalizers_are_gone() {
    let mut folder = Folder::with(&[("web.yaml", manifest("web-1", ", cores: 3"))]).await;
    folder.hold("web-1").await;
    fs::remove_file(folder.path().join("web.yaml")).unwrap();
    let going = folder.until("web-1", |m| m.is_some_and(|m| m.is_deleting())).await.unwrap();
    let folder = folder.reopen().await;
    let kept = folder.get("web-1").await.unwrap();
    assert_eq!((kept.metadata.deletion_timestamp, kept.spec.cores), (going.metadata.deletion_timestamp, Some(3)));
    folder.store.set_finalizers(&kept, vec![]).await.unwrap();
    assert!(folder.get("web-1").await.is_none());
    assert!(!folder.path().join("pvemachine.web-1.status.yaml").exists());
}

#[tokio::test]
async fn a_manifest_removed_while_nobody_watched_deletes_too() {
    let folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    folder.hold("web-1").await;
    fs::remove_file(folder.path().join("web.yaml")).unwrap();
    let mut folder = folder.reopen().await;
    folder.until("web-1", |m| m.is_some_and(|m| m.is_deleting())).await;
}

#[tokio::test]
async fn a_manifest_that_became_unreadable_deletes_nothing_and_disturbs_nobody() {
    for (round, bad) in
        ["a: [", "", "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\n", &manifest("web-1", ", memroy: 2Gi")].iter().enumerate()
    {
        let mut folder = Folder::with(&[("web.yaml", manifest("web-1", "")), ("db.yaml", manifest("db-1", ""))]).await;
        folder.hold("web-1").await;
        folder.write("web.yaml", bad);
        folder.settled(u32::try_from(round).unwrap()).await;
        let held = folder.get("web-1").await.unwrap();
        assert!(!held.is_deleting(), "{bad:?}");
        folder.write("db.yaml", &manifest("db-1", ", cores: 2"));
        folder.until("db-1", |m| m.is_some_and(|m| m.spec.cores == Some(2))).await;
        folder.write("web.yaml", &manifest("web-1", ", cores: 2"));
        let mended = folder.until("web-1", |m| m.is_some_and(|m| m.spec.cores == Some(2))).await.unwrap();
        assert_eq!(mended.metadata.uid, held.metadata.uid);
    }
}

#[tokio::test]
async fn an_unreadable_manifest_is_no_deletion_after_a_restart_either() {
    let folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    folder.hold("web-1").await;
    // Renamed and broken while nobody watched.
    fs::remove_file(folder.path().join("web.yaml")).unwrap();
    folder.write("new.yaml", "a: [");
    let folder = folder.reopen().await;
    assert_eq!(folder.store.rescan(None).await.unwrap(), None, "nothing waits for its grace time to end");
    assert!(!folder.get("web-1").await.unwrap().is_deleting());
}

#[tokio::test]
async fn a_manifest_that_moves_keeps_its_object() {
    let mut folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    let before = folder.hold("web-1").await;
    fs::rename(folder.path().join("web.yaml"), folder.path().join("a.yaml")).unwrap();
    folder.settled(0).await;
    // Copied to another file with a change, then removed from the first.
    folder.write("z.yaml", &manifest("web-1", ", cores: 7"));
    folder.settled(1).await;
    assert_eq!(folder.get("web-1").await.unwrap().spec.cores, None, "the copy does not count while the original stands");
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    let after = folder.until("web-1", |m| m.is_some_and(|m| m.spec.cores == Some(7))).await.unwrap();
    assert_eq!((after.metadata.uid, after.metadata.deletion_timestamp), (before.metadata.uid, None));
}

#[tokio::test]
async fn a_manifest_that_comes_back_while_its_object_goes_makes_a_new_one() {
    let mut folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    let old = folder.hold("web-1").await;
    fs::remove_file(folder.path().join("web.yaml")).unwrap();
    let going = folder.until("web-1", |m| m.is_some_and(|m| m.is_deleting())).await.unwrap();
    folder.write("web.yaml", &manifest("web-1", ""));
    folder.settled(0).await;
    assert!(folder.get("web-1").await.unwrap().is_deleting(), "a deletion that has begun is finished");
    folder.store.set_finalizers(&going, vec![]).await.unwrap();
    let new = folder.until("web-1", |m| m.is_some_and(|m| !m.is_deleting())).await.unwrap();
    assert_ne!(new.metadata.uid, old.metadata.uid);
    assert_eq!(new.status, MachineStatus::default());
}

#[tokio::test]
async fn an_object_that_goes_takes_the_annotations_of_a_manifest_that_comes_back_and_nothing_else() {
    let mut folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    folder.hold("web-1").await;
    fs::remove_file(folder.path().join("web.yaml")).unwrap();
    let going = folder.until("web-1", |m| m.is_some_and(|m| m.is_deleting())).await.unwrap();
    let text = manifest("web-1", ", cores: 7").replace("{name: web-1}", "{name: web-1, annotations: {pvelet.dev/abandon: 'true'}}");
    folder.write("web.yaml", &text);
    let told = folder.until("web-1", |m| m.is_some_and(|m| m.has_flag(ABANDON))).await.unwrap();
    assert_eq!((told.is_deleting(), &told.spec), (true, &going.spec));
}

#[tokio::test]
async fn a_second_controller_on_the_folder_is_refused() {
    let folder = Folder::with(&[]).await;
    let second = FolderStore::open(folder.path()).await;
    assert!(matches!(second, Err(StoreError::InUse(_))), "{:?}", second.err());
}

#[tokio::test]
async fn the_epoch_counts_starts_of_one_lease() {
    let folder = Folder::with(&[]).await;
    let first = folder.store.epoch().clone();
    let folder = folder.reopen().await;
    let second = folder.store.epoch().clone();
    assert_eq!((first.transitions, second.transitions), (1, 2));
    assert_eq!(first.lease_uid, second.lease_uid);
}

#[tokio::test]
async fn a_damaged_status_file_stops_its_object_and_no_other() {
    let folder = Folder::with(&[("web.yaml", manifest("web-1", "")), ("db.yaml", manifest("db-1", ""))]).await;
    folder.hold("web-1").await;
    folder.hold("db-1").await;
    folder.write("pvemachine.web-1.status.yaml", "half a fi");
    let folder = folder.reopen().await;
    assert!(folder.get("web-1").await.is_none(), "a new uid would make a second VM");
    assert!(folder.get("db-1").await.is_some());
    let text = fs::read_to_string(folder.path().join("pvemachine.web-1.status.yaml")).unwrap();
    assert_eq!(text, "half a fi");
}

#[tokio::test]
async fn a_folder_that_was_replaced_deletes_nothing() {
    let folder = Folder::with(&[("web.yaml", manifest("web-1", ""))]).await;
    folder.hold("web-1").await;
    fs::remove_file(folder.path().join(".pvelet-controller.lock")).unwrap();
    assert!(matches!(folder.store.rescan(None).await, Err(StoreError::FolderLost(_))));
    fs::remove_file(folder.path().join("web.yaml")).unwrap();
    assert!(matches!(folder.store.rescan(None).await, Err(StoreError::FolderLost(_))));
    assert!(!folder.get("web-1").await.unwrap().is_deleting());
}
