#![allow(clippy::unwrap_used)]

use std::fs;

use tokio::sync::broadcast;

use super::{
    super::{Change, RunState},
    *,
};

const LIMIT: Duration = Duration::from_secs(20);

/// A folder that looks like `/etc/pve`.
struct Tree {
    dir: tempfile::TempDir,
    starttime: u64,
    counter: u64,
    vms: Vec<(u32, &'static str, u64)>,
}

impl Tree {
    fn new(vms: &[(u32, &'static str)]) -> Self {
        let tree = Self {
            dir: tempfile::tempdir().unwrap(),
            starttime: 1000,
            counter: 5,
            vms: vms.iter().map(|(vmid, node)| (*vmid, *node, 1)).collect(),
        };
        for node in ["a", "b"] {
            fs::create_dir_all(tree.dir.path().join("nodes").join(node).join("qemu-server")).unwrap();
        }
        fs::create_dir(tree.dir.path().join("ha")).unwrap();
        for (vmid, node) in vms {
            tree.config(*vmid, node, "cores: 1\n");
        }
        tree.quorum(true);
        tree.publish();
        tree
    }

    /// Replaces a file, so that nobody reads half of it.
    fn put(&self, name: &str, text: &str) {
        let temporary = self.dir.path().join("temporary");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.dir.path().join(name)).unwrap();
    }

    fn config(&self, vmid: u32, node: &str, text: &str) {
        self.put(&format!("nodes/{node}/qemu-server/{vmid}.conf"), text);
    }

    fn quorum(&self, quorate: bool) {
        let quorate = u8::from(quorate);
        self.put(".members", &format!("{{\"nodename\":\"a\",\"cluster\":{{\"name\":\"lab\",\"quorate\":{quorate}}},\"nodelist\":{{\"a\":{{\"id\":1,\"online\":1}}}}}}"));
    }

    /// Writes `.vmlist`, then `.version`.
    fn publish(&self) {
        let line = |(id, node, version): &(u32, &str, u64)| {
            format!("\"{id}\": {{ \"node\": \"{node}\", \"type\": \"qemu\", \"version\": {version} }}")
        };
        let lines: Vec<_> = self.vms.iter().map(line).collect();
        self.put(".vmlist", &format!("{{\n\"version\": {},\n\"ids\": {{\n{}}}\n\n}}\n", self.counter, lines.join(",\n")));
        let (start, n) = (self.starttime, self.counter);
        self.put(".version", &format!("{{\"starttime\": {start}, \"clinfo\": 0, \"vmlist\": {n}, \"user.cfg\": {n}, \"ha/resources.cfg\": {n}, \"ha/manager_status\": {n}, \"replication.cfg\": {n}}}"));
    }

    /// Publishes what `change` does.
    fn change(&mut self, change: impl FnOnce(&mut Vec<(u32, &'static str, u64)>)) {
        change(&mut self.vms);
        self.counter += 1;
        self.publish();
    }

    fn start(&self) -> (Arc<World>, Reader) {
        let world = Arc::new(World::new("a"));
        let reader = Reader::start(self.dir.path().to_owned(), "a".into(), world.clone()).unwrap();
        (world, reader)
    }
}

async fn next(changes: &mut broadcast::Receiver<Change>) -> Change {
    loop {
        let change = tokio::time::timeout(LIMIT, changes.recv()).await.unwrap().unwrap();
        if !matches!(change, Change::Cluster) {
            return change;
        }
    }
}

#[tokio::test]
async fn all_is_read_and_then_what_changes() {
    let mut tree = Tree::new(&[(100, "a"), (101, "b")]);
    tree.put("user.cfg", "pool:p1::101::\n");
    tree.put("ha/resources.cfg", "vm: 101\n\tstate started\n");
    tree.put("ha/manager_status", "{\"node_status\":{\"a\":\"maintenance\"}}");
    let (world, reader) = tree.start();
    reader.refresh(None).await.unwrap();
    let inventory = world.inventory();
    assert!(inventory.complete && inventory.quorate && inventory.maintenance);
    assert_eq!((inventory.cluster.as_str(), &inventory.pools), ("lab", &vec!["p1".to_owned()]));
    let (local, other) = (&inventory.vms[&100], &inventory.vms[&101]);
    assert_eq!((&local.run, &other.run), (&RunState::Stopped, &RunState::Unknown));
    assert!(other.ha.is_some() && other.pool.as_deref() == Some("p1") && local.ha.is_none());

    let mut changes = world.changes();
    // Another node's change comes in silently: only the counters tell.
    tree.config(101, "b", "cores: 2\n");
    tree.change(|vms| vms[1].2 = 2);
    assert!(matches!(next(&mut changes).await, Change::VmChanged(vm) if vm.vmid == 101 && vm.config.number("cores") == Some(2)));
    // A migration: the config moves.
    fs::rename(tree.dir.path().join("nodes/b/qemu-server/101.conf"), tree.dir.path().join("nodes/a/qemu-server/101.conf")).unwrap();
    tree.change(|vms| vms[1] = (101, "a", 3));
    assert!(matches!(next(&mut changes).await, Change::VmMoved { vm, from } if vm.node == "a" && from == "b"));
    tree.config(102, "a", "cores: 1\n");
    tree.change(|vms| vms.push((102, "a", 1)));
    assert!(matches!(next(&mut changes).await, Change::VmCreated(vm) if vm.vmid == 102));
    tree.change(|vms| vms.retain(|(id, ..)| *id != 100));
    assert!(matches!(next(&mut changes).await, Change::VmRemoved(vm) if vm.vmid == 100));
}

#[tokio::test]
async fn counters_that_begin_again_hide_no_change() {
    let mut tree = Tree::new(&[(100, "a"), (101, "a")]);
    let (world, reader) = tree.start();
    reader.refresh(None).await.unwrap();
    let mut changes = world.changes();
    // pmxcfs was restarted and 101 was changed: all counters are what they were.
    tree.config(101, "a", "cores: 7\n");
    tree.starttime += 1;
    tree.publish();
    assert!(matches!(next(&mut changes).await, Change::VmChanged(vm) if vm.vmid == 101));
    reader.refresh(None).await.unwrap();
    assert!(changes.try_recv().is_err(), "100 did not change");
}

#[tokio::test]
async fn nothing_is_gone_without_quorum() {
    let mut tree = Tree::new(&[(100, "b")]);
    let (world, reader) = tree.start();
    reader.refresh(None).await.unwrap();
    tree.quorum(false);
    tree.change(Vec::clear);
    reader.refresh(None).await.unwrap();
    assert!(!world.inventory().quorate && world.inventory().vms.contains_key(&100));
    let mut changes = world.changes();
    tree.quorum(true);
    assert!(matches!(next(&mut changes).await, Change::VmRemoved(vm) if vm.vmid == 100));
}

#[tokio::test]
async fn a_config_that_vanishes_while_it_is_read_is_looked_for_again() {
    let mut tree = Tree::new(&[(100, "a")]);
    let (world, reader) = tree.start();
    reader.refresh(None).await.unwrap();
    let mut changes = world.changes();
    tree.change(|vms| vms.push((101, "b", 1)));
    reader.refresh(None).await.unwrap();
    assert!(!world.inventory().vms.contains_key(&101) && world.inventory().vmids.contains_key(&101), "its VMID is taken all the same");
    tree.config(101, "b", "cores: 1\n");
    assert!(matches!(next(&mut changes).await, Change::VmCreated(vm) if vm.vmid == 101));
}

#[tokio::test]
async fn a_file_system_that_is_not_there_is_told_until_it_comes() {
    let tree = Tree::new(&[(100, "a")]);
    let away = tree.dir.path().join(".version.away");
    fs::rename(tree.dir.path().join(".version"), &away).unwrap();
    let (world, reader) = tree.start();
    let error = reader.refresh(None).await.unwrap_err();
    assert_eq!(error.reason(), "PVE_FS_HUNG");
    assert!(error.to_string().contains("is it mounted"), "{error}");
    assert!(world.inventory().hung_since.is_some() && !world.inventory().complete);
    fs::rename(away, tree.dir.path().join(".version")).unwrap();
    reader.refresh(None).await.unwrap();
    assert!(world.inventory().hung_since.is_none() && world.inventory().complete);
}

#[tokio::test]
async fn a_read_that_hangs_is_told_and_holds_up_nobody() {
    let tree = Tree::new(&[(100, "a")]);
    let (world, reader) = tree.start();
    reader.refresh(None).await.unwrap();
    let mut changes = world.changes();
    // A pipe that nobody writes to hangs whoever opens it.
    let path = tree.dir.path().join(".version");
    let text = fs::read_to_string(&path).unwrap();
    nix::unistd::mkfifo(&tree.dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::rename(tree.dir.path().join("pipe"), &path).unwrap();
    assert!(matches!(tokio::time::timeout(LIMIT, changes.recv()).await.unwrap().unwrap(), Change::Cluster));
    assert!(world.inventory().hung_since.is_some());
    // Whoever asks now is told, instead of waiting behind the read that hangs.
    assert_eq!(reader.refresh(None).await.unwrap_err().reason(), "PVE_FS_HUNG");
    // It goes on when the file system does.
    fs::write(&path, &text).unwrap();
    tree.put(".version", &text);
    while world.inventory().hung_since.is_some() {
        tokio::time::timeout(LIMIT, changes.recv()).await.unwrap().unwrap();
    }
    reader.refresh(None).await.unwrap();
}

#[tokio::test]
async fn one_vm_is_read_now_whatever_the_counters_say() {
    let tree = Tree::new(&[(100, "a")]);
    let (world, reader) = tree.start();
    reader.refresh(None).await.unwrap();
    tree.config(100, "a", "cores: 3\n");
    reader.refresh(Some(100)).await.unwrap();
    assert_eq!(world.inventory().vms[&100].config.number("cores"), Some(3));
    reader.refresh(Some(999)).await.unwrap();
}
