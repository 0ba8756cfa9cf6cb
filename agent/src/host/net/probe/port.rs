//! Probes of a link, or of a VLAN of a VLAN-aware bridge on a port that lives as long as the probe.

use std::{collections::BTreeMap, future::Future, net::IpAddr, time::Duration};

use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{KernelLink, ProbePort, Probed, kernel, probe_port},
    answer, send, who_has,
};
use crate::error::Error;

/// [`who_has`] on a port. Errors: `InterfaceNotFound`, `NetworkFailed`.
pub async fn who_has_on(port: &ProbePort, addresses: &[IpAddr], timeout: Duration) -> Result<BTreeMap<IpAddr, String>, Error> {
    let addresses = addresses.to_vec();
    on(port, move |link| async move { who_has(&link, &addresses, timeout).await }).await
}

/// [`answer`] on a port. Errors: `InterfaceNotFound`, `NetworkFailed`.
pub async fn answer_on(port: &ProbePort, token: &str, time: Duration) -> Result<u32, Error> {
    let token = token.to_owned();
    on(port, move |link| async move { answer(&link, &token, time).await }).await
}

/// [`send`] on a port. Errors: `InterfaceNotFound`, `NetworkFailed`.
pub async fn send_on(port: &ProbePort, token: &str, mtus: &[u32], timeout: Duration) -> Result<Probed, Error> {
    let (token, mtus) = (token.to_owned(), mtus.to_vec());
    on(port, move |link| async move { send(&link, &token, &mtus, timeout).await }).await
}

async fn on<T, W, F>(port: &ProbePort, work: W) -> Result<T, Error>
where
    T: Send + 'static,
    W: FnOnce(KernelLink) -> F + Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let Some(vlan) = port.vlan else { return work(find(&port.link).await?).await };
    let bridge = port.link.clone();
    with_port(
        async move { probe_port::add(&bridge, vlan).await },
        |name| async move { probe_port::remove(&name).await },
        |name| async move { work(find(&name).await?).await },
    )
    .await
}

async fn find(name: &str) -> Result<KernelLink, Error> {
    let links = kernel::blocking(|| kernel::links(&mut kernel::open()?)).await?;
    let found = links.into_iter().map(|l| l.link).find(|l| l.name == name || l.altnames.iter().any(|a| a == name));
    found.ok_or_else(|| Error::InterfaceNotFound { interface: name.to_owned() })
}

/// Adds a port, works on it, and removes it: also when the work fails or panics, or nobody waits for it any more.
async fn with_port<T, R, F>(
    add: impl Future<Output = Result<String, Error>> + Send + 'static,
    remove: impl FnOnce(String) -> R + Send + 'static,
    work: impl FnOnce(String) -> F + Send + 'static,
) -> Result<T, Error>
where
    T: Send + 'static,
    R: Future<Output = Result<(), Error>> + Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let (mut answer, result) = oneshot::channel();
    // A task of its own, since the caller may go away at any time, and removing takes time.
    tokio::spawn(async move {
        let name = match add.await {
            Ok(name) => name,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let job = AbortOnDropHandle::new(tokio::spawn(work(name.clone())));
        let done = tokio::select! {
            done = job => Some(done.unwrap_or_else(|e| Err(Error::Internal(e.to_string())))),
            () = answer.closed() => None,
        };
        if let Err(error) = remove(name.clone()).await {
            tracing::warn!(%name, %error, "a port for a probe could not be removed; it goes when the agent starts next");
        }
        if let Some(done) = done {
            _ = answer.send(done);
        }
    });
    result.await.map_err(|e| Error::Internal(e.to_string()))?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::sync::mpsc;

    use super::*;

    /// What was removed, and how the work ended.
    async fn removed<F>(work: impl FnOnce(String) -> F + Send + 'static) -> (Option<String>, Result<u32, Error>)
    where
        F: Future<Output = Result<u32, Error>> + Send + 'static,
    {
        let (gone, mut removed) = mpsc::unbounded_channel();
        let remove = move |name| async move {
            gone.send(name).unwrap();
            Ok(())
        };
        let result = with_port(async { Ok("pvprobe0".to_owned()) }, remove, work).await;
        (removed.recv().await, result)
    }

    #[tokio::test]
    async fn a_port_is_removed_however_the_work_ends() {
        let port = Some("pvprobe0".to_owned());
        assert_eq!(removed(|_| async { Ok(7) }).await, (port.clone(), Ok(7)));
        let failed = Error::NetworkFailed { message: "no".into() };
        let error = failed.clone();
        assert_eq!(removed(|_| async { Err(error) }).await, (port.clone(), Err(failed)));
        let (gone, result) = removed(|_| async { panic!("the work panics") }).await;
        assert!(gone == port && matches!(result, Err(Error::Internal(_))), "{gone:?} {result:?}");
    }

    #[tokio::test]
    async fn a_port_is_removed_when_nobody_waits_any_more() {
        let (gone, mut removed) = mpsc::unbounded_channel();
        let (begun, mut begins) = mpsc::unbounded_channel();
        let remove = move |name| async move {
            gone.send(name).unwrap();
            Ok(())
        };
        let work = move |_| async move {
            begun.send(()).unwrap();
            std::future::pending::<Result<(), Error>>().await
        };
        let caller = with_port(async { Ok("pvprobe0".to_owned()) }, remove, work);
        tokio::select! {
            _ = caller => panic!("it cannot end"),
            begun = begins.recv() => begun.unwrap(),
        }
        assert_eq!(removed.recv().await.as_deref(), Some("pvprobe0"));
    }

    #[tokio::test]
    async fn without_a_port_nothing_is_done() {
        let refused = Error::InterfaceNotFound { interface: "vmbr9".into() };
        let error = refused.clone();
        let remove = |_| async { panic!("nothing is there to remove") };
        let result = with_port(async { Err(error) }, remove, |_| async { Ok(()) }).await;
        assert_eq!(result, Err(refused));
    }
}
