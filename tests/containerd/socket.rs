//! The socket.

use std::time::Duration;

use pvelet_agent::host::runtime::{Runtime, Sandbox};
use pvelet_tests::containerd::{Containerd, PAUSE};

const LONG: Duration = Duration::from_secs(30);

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
    assert!(image_fs[0].mountpoint.starts_with(containerd.place().root()), "{image_fs:?}");
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
