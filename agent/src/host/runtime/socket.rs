//! containerd over its Unix socket.

use std::{
    future::Future,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use super::{
    Plugin, Runtime, RuntimeCondition, RuntimeStatus, RuntimeVersion, Sandbox,
    api::{
        cri::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
        introspection::{self, introspection_client::IntrospectionClient},
    },
    pod, trouble,
};
use crate::error::{Error, Trouble};

/// A connection over which nothing comes for so long, though something is asked, is tried; and given up if nothing comes then. Questions to a
/// daemon that hangs would else pile up in it without end.
const ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// containerd's socket. The connection is made at the first call, and made again when it is lost or when there is another socket at its place.
#[derive(Debug)]
pub struct ContainerdSocket {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

/// A connection, and the socket file it was made to.
#[derive(Debug)]
struct Open {
    socket: SocketFile,
    channel: Channel,
}

/// A socket file, told from one that was made later at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SocketFile {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl ContainerdSocket {
    /// For the socket at this path; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), open: Mutex::new(None) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, (trouble, message): (Trouble, String)) -> Error {
        Error::Look { trouble, message: format!("{}: {message}", self.path.display()) }
    }

    /// Looks at the socket file each time: through a connection that is open, a daemon answers even after its socket was removed, when
    /// nobody else reaches it any more.
    async fn channel(&self) -> Result<Channel, Error> {
        let found = tokio::fs::metadata(&self.path).await.map_err(|e| self.error(trouble::of_io(&e)))?;
        if !found.file_type().is_socket() {
            return Err(self.error((Trouble::Refused, "is no socket".into())));
        }
        let socket = SocketFile { device: found.dev(), inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.as_ref().filter(|o| o.socket == socket) {
            return Ok(open.channel.clone());
        }
        let path = self.path.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority is only a header here.
        let endpoint = Endpoint::from_static("http://localhost").http2_keep_alive_interval(ALIVE.0).keep_alive_timeout(ALIVE.1);
        let channel = endpoint.connect_with_connector_lazy(connector);
        *open = Some(Open { socket, channel: channel.clone() });
        Ok(channel)
    }

    /// Asks, and gives up after `patience`; containerd is told how long it has, so that it gives up too. A question that changes nothing, so
    /// that it may be asked twice, is asked again when the connection turns out to have been cut since the last one.
    async fn call<Q, A, F>(&self, patience: Duration, question: Q, twice: bool, ask: impl Fn(Channel, Request<Q>) -> F) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let answered = async {
            let mut again = twice;
            loop {
                let mut request = Request::new(question.clone());
                request.set_timeout(patience);
                match ask(self.channel().await?, request).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if again && trouble::is_cut(&status) => again = false,
                    Err(status) => return Err(self.error(trouble::of_status(&status, patience))),
                }
            }
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(self.error(trouble::silence(patience))),
        }
    }

    async fn list(&self, filter: cri::PodSandboxFilter, patience: Duration) -> Result<Vec<cri::PodSandbox>, Error> {
        let question = cri::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.call(patience, question, true, |c, q| async move { RuntimeServiceClient::new(c).list_pod_sandbox(q).await }).await?.items)
    }

    async fn stop_and_remove(&self, id: &str, until: Instant) -> Result<(), Error> {
        let question = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(left(until), question, true, |c, q| async move { RuntimeServiceClient::new(c).stop_pod_sandbox(q).await }).await?;
        let question = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(left(until), question, true, |c, q| async move { RuntimeServiceClient::new(c).remove_pod_sandbox(q).await }).await?;
        Ok(())
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

#[tonic::async_trait]
impl Runtime for ContainerdSocket {
    async fn version(&self, patience: Duration) -> Result<RuntimeVersion, Error> {
        let question = cri::VersionRequest::default();
        let answer = self.call(patience, question, true, |c, q| async move { RuntimeServiceClient::new(c).version(q).await }).await?;
        Ok(RuntimeVersion { name: answer.runtime_name, version: answer.runtime_version, api: answer.runtime_api_version })
    }

    async fn status(&self, patience: Duration) -> Result<RuntimeStatus, Error> {
        let question = cri::StatusRequest { verbose: true };
        let mut answer = self.call(patience, question, true, |c, q| async move { RuntimeServiceClient::new(c).status(q).await }).await?;
        let conditions = answer.status.take().unwrap_or_default().conditions.into_iter();
        Ok(RuntimeStatus {
            conditions: conditions
                .map(|c| RuntimeCondition { kind: c.r#type, status: c.status, reason: c.reason, message: c.message })
                .collect(),
            config: answer.info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
            cni: answer.info.remove("lastCNILoadStatus").unwrap_or_default(),
        })
    }

    async fn plugins(&self, patience: Duration) -> Result<Vec<Plugin>, Error> {
        let question = introspection::PluginsRequest::default();
        let answer = self.call(patience, question, true, |c, q| async move { IntrospectionClient::new(c).plugins(q).await }).await?;
        let plugin =
            |p: introspection::Plugin| Plugin { kind: p.r#type, id: p.id, error: p.init_err.map(|e| e.message).unwrap_or_default() };
        Ok(answer.plugins.into_iter().map(plugin).collect())
    }

    async fn image_fs(&self, patience: Duration) -> Result<Vec<PathBuf>, Error> {
        let question = cri::ImageFsInfoRequest {};
        let answer = self.call(patience, question, true, |c, q| async move { ImageServiceClient::new(c).image_fs_info(q).await }).await?;
        Ok(answer.image_filesystems.into_iter().map(|f| f.fs_id.map(|i| i.mountpoint.into()).unwrap_or_default()).collect())
    }

    async fn has_image(&self, image: &str, patience: Duration) -> Result<bool, Error> {
        let question = cri::ImageStatusRequest { image: Some(cri::ImageSpec { image: image.to_owned() }) };
        let answer = self.call(patience, question, true, |c, q| async move { ImageServiceClient::new(c).image_status(q).await }).await?;
        Ok(answer.image.is_some())
    }

    async fn run_sandbox(&self, patience: Duration) -> Result<String, Error> {
        let until = Instant::now() + patience;
        let status = self.status(patience).await?;
        let question = cri::RunPodSandboxRequest { config: Some(pod::config(&status.config)), runtime_handler: String::new() };
        let ask = |c, q| async move { RuntimeServiceClient::new(c).run_pod_sandbox(q).await };
        Ok(self.call(left(until), question, false, ask).await?.pod_sandbox_id)
    }

    async fn remove_sandbox(&self, id: &str, patience: Duration) -> Result<(), Error> {
        let until = Instant::now() + patience;
        let Err(error) = self.stop_and_remove(id, until).await else { return Ok(()) };
        // Somebody else, the kubelet, may have removed it meanwhile: then whatever failed does not matter.
        let filter = cri::PodSandboxFilter { id: id.to_owned(), ..cri::PodSandboxFilter::default() };
        match self.list(filter, left(until)).await {
            Ok(left) if left.is_empty() => Ok(()),
            _ => Err(error),
        }
    }

    async fn own_sandboxes(&self, patience: Duration) -> Result<Vec<Sandbox>, Error> {
        let filter = cri::PodSandboxFilter { label_selector: pod::mark(), ..cri::PodSandboxFilter::default() };
        let ready = |s: &cri::PodSandbox| s.state() == cri::PodSandboxState::SandboxReady;
        // Labels of pods become labels of their sandboxes: anybody's pod may carry this one.
        let own = |s: &cri::PodSandbox| s.metadata.as_ref().is_some_and(|m| m.uid == pod::UID);
        Ok(self.list(filter, patience).await?.into_iter().filter(own).map(|s| Sandbox { ready: ready(&s), id: s.id }).collect())
    }
}
