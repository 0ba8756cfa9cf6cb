//! The socket and the table of verbs.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
};

use serde_json::{Value, json};

use super::{Request, Sim};

/// Listens on `control.sock`, one thread a connection, until the process ends.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(sim: Arc<Sim>) -> io::Result<()> {
    let path = sim.dir.join("control.sock");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(path)?;
    thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let sim = Arc::clone(&sim);
            thread::spawn(move || serve(&sim, &stream));
        }
    })?;
    Ok(())
}

fn serve(sim: &Sim, stream: &UnixStream) {
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let answer = match serde_json::from_str::<Request>(&line).map_err(io::Error::other).and_then(|request| sim.answer(request)) {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        let mut out = stream;
        if out.write_all(format!("{answer}\n").as_bytes()).is_err() {
            return;
        }
    }
}

fn done(result: io::Result<()>) -> io::Result<Value> {
    result.map(|()| Value::Null)
}

fn store(result: Result<(), nix::errno::Errno>) -> io::Result<Value> {
    done(result.map_err(io::Error::from))
}

impl Sim {
    /// Does what is asked for.
    fn answer(&self, request: Request) -> io::Result<Value> {
        match request {
            Request::Status {} => self.status(),
            Request::Leftovers {} => self.leftovers().map(Value::String),
            Request::SeedTemplate(seed) => done(self.seed(&seed, true)),
            Request::SeedVm(seed) => done(self.seed(&seed, false)),
            Request::SeedVms { node, first, count } => done(self.seed_many(&node, first, count)),
            Request::WriteFile { path, content, node } => done(self.write_file(&path, &content, node.as_deref())),
            Request::ReadFile { path } => Ok(String::from_utf8_lossy(&self.store.read_path(&path)?).into()),
            Request::RemoveFile { path } => store(self.store.remove_path(&path)),
            Request::Rename { from, to } => store(self.store.rename_path(&from, &to)),
            Request::Migrate { vmid, to } => done(self.migrate(vmid, &to)),
            Request::FailOver { vmid, to } => done(self.node(&to).and_then(|_| self.ha.fail_over(vmid, &to))),
            Request::RestoreDuplicate { vmid, new, node } => done(self.duplicate(vmid, new, node.as_deref())),
            Request::SetConfig { vmid, key, value } => done(self.set_config(vmid, &key, value.as_deref())),
            Request::LockVm { vmid, lock } => done(self.set_config(vmid, "lock", Some(&lock))),
            Request::UnlockVm { vmid } => done(self.set_config(vmid, "lock", None)),
            Request::Protect { vmid, on } => done(self.set_config(vmid, "protection", on.then_some("1"))),
            Request::HoldLock { node, vmid, storage } => self.hold_lock(&node, vmid, storage.as_deref()).map(Value::from),
            Request::ReleaseLock { id } => done(self.release_lock(id)),
            Request::TakeClusterLock { name } => done(self.take_cluster_lock(&name)),
            Request::ReleaseClusterLock { name } => store(self.store.remove_path(&format!("priv/lock/{name}"))),
            Request::ExpireClusterLock { name } => store(self.store.expire_lock(&name)),
            Request::Faults { node, change } => self.change_faults(&node, &change),
            Request::Quorum { node, on } => done(self.set_quorum(node.as_deref(), on)),
            Request::Pmxcfs { node, action } => done(self.pmxcfs(&node, action)),
            Request::Daemon { node, up } => done(self.daemon(&node, up)),
            Request::HaAdd { vmid, state } => done(self.ha_add(vmid, &state)),
            Request::HaRemove { vmid } => done(self.ha_remove(vmid)),
            Request::HaMode(mode) => {
                self.ha.set_mode(mode);
                Ok(Value::Null)
            }
            Request::ReplicationAdd { vmid, target } => done(self.replication_add(vmid, &target)),
            Request::ReplicationRemove { vmid } => done(self.replication_remove(vmid)),
            Request::StartGuest { vmid } => self.start_guest(vmid).map(Value::from),
            Request::QuitGuest { vmid } => done(self.vm(vmid).and_then(|layout| crate::guest::quit(&layout, vmid))),
            Request::KillGuest { vmid } => done(self.vm(vmid).and_then(|layout| crate::guest::kill(&layout, vmid))),
            Request::GuestBehaviour { vmid, behaviour } => done(self.vm(vmid).and_then(|layout| behaviour.store(&layout, vmid))),
            Request::HoldDisk { vmid, slot, hold } => done(self.hold_disk(vmid, &slot, hold)),
            Request::AddSharedStorage { id } => done(self.add_shared_storage(&id)),
        }
    }
}
