//! The socket.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    sync::Arc,
};

use nix::unistd::{Uid, setfsuid};
use pvelet_agent::{
    error::{Error, Trouble},
    health::{Source, State},
    host::{
        runtime::{Runtime, Sandbox},
        units_fake::FakeUnits,
    },
};
use pvelet_tests::{
    containerd::{Containerd, PAUSE, Place},
    faults::{Fault, Repaired},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::host::{LONG, UNIT, look, sources};

#[tokio::test]
async fn a_healthy_containerd_answers_every_question() {
    let containerd = Containerd::start().await;
    let runtime = containerd.runtime();
    let version = runtime.version(LONG).await.unwrap();
    assert_eq!((version.name.as_str(), version.api.as_str()), ("containerd", "v1"));
    let status = runtime.status(LONG).await.unwrap();
    assert_eq!(status.config["sandboxImage"], PAUSE);
    assert!(status.conditions.iter().any(|c| c.kind == "RuntimeReady" && c.status), "{status:?}");
    let image_fs = runtime.image_fs(LONG).await.unwrap();
    assert!(image_fs[0].starts_with(containerd.place().root()), "{image_fs:?}");
    let plugins = runtime.plugins(LONG).await.unwrap();
    assert!(plugins.iter().any(|p| p.id == "cri" && p.error.is_empty()), "{plugins:?}");
    containerd.wait_image(PAUSE, true).await;
    assert!(!runtime.has_image("pvelet.test/none:1", LONG).await.unwrap());

    let id = runtime.run_sandbox(LONG).await.unwrap();
    assert_eq!(runtime.own_sandboxes(LONG).await.unwrap(), [Sandbox { id: id.clone(), ready: true }]);
    runtime.remove_sandbox(&id, LONG).await.unwrap();
    runtime.remove_sandbox(&id, LONG).await.unwrap();
    assert_eq!(runtime.own_sandboxes(LONG).await.unwrap(), []);
}

/// A worker with whatever listens at containerd's socket.
fn worker(place: &Place) -> Vec<Arc<dyn Source>> {
    let units = FakeUnits::new();
    units.set(UNIT, FakeUnits::running());
    sources(place, units)
}

#[test]
fn a_socket_that_may_not_be_used_is_told() {
    let fault = Fault::new("a socket without rights", "containerd.responding");
    let place = Place::new();
    let _listener = UnixListener::bind(place.socket()).unwrap();
    fs::set_permissions(place.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    // Of threads that are somebody else for file systems: root may everything.
    let nobody = || {
        let _ = setfsuid(Uid::from_raw(65534));
    };
    let sources = worker(&place);
    let looked = std::thread::spawn(move || {
        nobody();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(nobody).build().unwrap();
        runtime.block_on(look(&sources, "containerd.responding"))
    });
    let finding = looked.join().unwrap();
    assert!(finding.state == State::Unknown && finding.seen.contains("denied"), "{finding:?}");
    fault.only_found(Repaired::ByHand);
}

#[tokio::test]
async fn something_else_that_listens_is_told() {
    let fault = Fault::new("something else that listens at the socket", "containerd.responding");
    let place = Place::new();
    let listener = tokio::net::UnixListener::bind(place.socket()).unwrap();
    let mail = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mail.test ESMTP\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let finding = look(&worker(&place), "containerd.responding").await;
    mail.abort();
    assert!(finding.state == State::Failed && finding.seen.contains("containerd.sock"), "{finding:?}");
    fault.only_found(Repaired::ByHand);
}

#[tokio::test]
async fn the_connection_is_made_again_after_a_restart() {
    let containerd = Containerd::start().await;
    let runtime = containerd.runtime();
    runtime.version(LONG).await.unwrap();
    for _ in 0..3 {
        assert!(containerd.stop(), "it ends when it is asked to");
        assert!(matches!(runtime.version(LONG).await, Err(Error::Look { trouble: Trouble::Refused | Trouble::Missing, .. })));
        containerd.launch().await.unwrap();
        runtime.version(LONG).await.unwrap();
    }
}
