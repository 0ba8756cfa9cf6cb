//! `pve-sim run`: one process that plays the cluster.

mod folders;
pub mod processes;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use folders::{release_all, share, shared_folders};

use crate::{
    api,
    cluster::{Store, seed},
    control::{Sim, demo, listen},
    fuse::Mount,
    ha,
    layout::NodeLayout,
};

/// How long changes of the store are gathered before they are written to disk.
const SAVE_AFTER: Duration = Duration::from_secs(2);

/// How long a cluster lock holds without being renewed.
const LOCK_EXPIRY: Duration = Duration::from_secs(120);

/// How a cluster is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's folder; what an earlier run left there goes on.
    pub dir: PathBuf,
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// Make the demo's templates.
    pub seed_demo: bool,
    /// Lock time-outs, and the time after which a cluster lock expires, are multiplied by this.
    pub lock_factor: f64,
    /// How long a refused login waits for its answer.
    pub refusal_delay: Duration,
    /// End when standard input is closed: nobody can outlive whoever holds its other end.
    pub until_stdin_closes: bool,
}

/// Runs a cluster until SIGTERM or SIGINT. One line on standard output tells when it is ready, and each node's address.
///
/// # Errors
/// When another process runs this cluster, or something cannot be mounted or bound.
pub fn run(options: &Options) -> io::Result<()> {
    fs::create_dir_all(&options.dir)?;
    let dir = options.dir.canonicalize()?;
    processes::ensure_marked(&dir)?;
    let _only = lock(&dir)?;
    processes::kill_all(&dir);
    release_all(&dir);
    // Orphans come to this process, which reaps them.
    nix::sys::prctl::set_child_subreaper(true)?;

    let saved = dir.join("cluster.json");
    let store = Arc::new(Store::open(&options.nodes, &saved)?);
    store.set_hosts(&dir);
    store.set_lock_expiry(LOCK_EXPIRY.mul_f64(options.lock_factor));
    seed(&store);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = serve(options, &dir, &store, &runtime, &saved);
    processes::kill_all(&dir);
    release_all(&dir);
    store.save(&saved)?;
    // Threads that block on a mount must not hold the end up.
    runtime.shutdown_background();
    result
}

fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new().create(true).append(true).open(dir.join("run.lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => io::Error::other(format!("another process runs the cluster in {}", dir.display())),
        error => error.into(),
    })
}

fn serve(options: &Options, dir: &Path, store: &Arc<Store>, runtime: &tokio::runtime::Runtime, saved: &Path) -> io::Result<()> {
    let layouts: Vec<NodeLayout> = options.nodes.iter().map(|node| NodeLayout::new(dir, node)).collect();
    let mut mounts = Vec::new();
    for (index, layout) in layouts.iter().enumerate() {
        folders::prepare(layout, dir)?;
        mounts.push(Mutex::new(Mount::new(layout.etc_pve(), Arc::clone(store), index)?));
    }
    let settings = api::Settings { lock_factor: options.lock_factor, refusal_delay: options.refusal_delay, ..api::Settings::default() };
    let apis = layouts.iter().map(|layout| {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        runtime.block_on(api::serve_with(layout.clone(), any, settings.clone()))
    });
    let apis = apis.collect::<io::Result<Vec<_>>>()?;
    let addresses: BTreeMap<&str, String> =
        layouts.iter().zip(&apis).map(|(layout, api)| (layout.node(), api.address().to_string())).collect();
    let ready = json!({"ready": true, "dir": dir, "nodes": addresses, "control": dir.join("control.sock")});

    let manager = Arc::new(ha::Manager::new(Arc::clone(store), dir.to_owned()));
    let sim = Sim {
        dir: dir.to_owned(),
        store: Arc::clone(store),
        mounts,
        apis,
        runtime: runtime.handle().clone(),
        ha: Arc::clone(&manager),
        locks: Mutex::default(),
    };
    let sim = Arc::new(sim);
    // A daemon that was down when the cluster ended is down again.
    for layout in &layouts {
        sim.restore_daemon(layout)?;
    }
    if options.seed_demo {
        demo(&sim, &layouts)?;
    }
    thread::Builder::new().name("ha".into()).spawn(move || manager.run())?;
    let (kept, path) = (Arc::clone(store), saved.to_owned());
    thread::Builder::new().name("save".into()).spawn(move || keep_saved(&kept, &path))?;
    listen(Arc::clone(&sim))?;

    let ended = runtime.block_on(async {
        let (mut term, mut int, mut child) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::child())?);
        let closed = stdin_closed(options.until_stdin_closes);
        tokio::pin!(closed);
        writeln!(io::stdout(), "{ready}")?;
        loop {
            tokio::select! {
                _ = term.recv() => return Ok(()),
                _ = int.recv() => return Ok(()),
                () = &mut closed => return Ok(()),
                _ = child.recv() => processes::reap_orphans(),
            }
        }
    });
    sim.end();
    ended
}

/// Writes the store to disk a while after it changed.
fn keep_saved(store: &Store, path: &Path) {
    let mut seen = 0;
    loop {
        let revision = store.wait_changed(seen, Duration::from_secs(3600));
        if revision != seen {
            thread::sleep(SAVE_AFTER);
            seen = store.revision();
            if let Err(error) = store.save(path) {
                tracing::warn!(%error, "the store cannot be saved");
            }
        }
    }
}

async fn stdin_closed(wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    // A thread of its own: a read of standard input cannot be given up, and must not hold the runtime's end up.
    let (send, receive) = tokio::sync::oneshot::channel::<()>();
    thread::spawn(move || {
        let mut byte = [0];
        while io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
        drop(send);
    });
    let _ = receive.await;
}
