#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

use super::*;

fn tickets() -> Tickets {
    // A new ticket each time: `$$` is the shell's pid.
    Tickets::new(vec!["sh".into(), "-c".into(), "echo PVE:root@pam:$$::".into()])
}

fn call(method: Method, params: &[(&'static str, &str)]) -> Call<'static> {
    let params = params.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    Call { method, path: "/nodes/pve1/qemu/500/config".into(), params, about: Subject::vm("pve1", 500) }
}

fn ok(data: &str) -> String {
    let body = format!("{{\"data\":{data}}}");
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: Keep-Alive\r\n\r\n{body}", body.len())
}

/// A daemon that answers each request (as it comes from one `read`) by `answer(connection number, request)`; `None` closes the connection.
async fn daemon<F>(answer: F) -> (Api, mpsc::UnboundedReceiver<String>)
where
    F: Fn(usize, &str) -> Option<String> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    let answer = Arc::new(answer);
    let connections = AtomicUsize::new(0);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let number = connections.fetch_add(1, Ordering::SeqCst);
            let (answer, seen) = (answer.clone(), seen.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let n = stream.read(&mut buffer).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    let request = String::from_utf8_lossy(&buffer[..n]).into_owned();
                    let reply = answer(number, &request);
                    seen.send(request).unwrap();
                    let Some(reply) = reply else { return };
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (Api::new(address, tickets()), requests)
}

#[tokio::test]
async fn header_and_body_come_in_one_read() {
    let (api, mut requests) = daemon(|_, _| Some(ok("null"))).await;
    let long = "x".repeat(20_000);
    api.call(&call(Method::PUT, &[("description", &long), ("cores", "2")])).await.unwrap();
    let request = requests.recv().await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("PUT /api2/json/nodes/pve1/qemu/500/config HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains(&format!("content-length: {}", body.len())), "{head}");
    assert!(!head.to_lowercase().contains("transfer-encoding"), "PVE answers 501 to chunked bodies");
    assert!(body.ends_with("&cores=2"));
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let (api, mut requests) = daemon(|number, _| Some(ok(&number.to_string()))).await;
    for _ in 0..3 {
        assert_eq!(api.call(&call(Method::GET, &[])).await.unwrap(), 0);
        requests.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_read_is_repeated_when_its_connection_had_gone_stale() {
    // The first connection answers once and is then closed upon the second request.
    let first = AtomicUsize::new(0);
    let (api, _requests) =
        daemon(move |number, _| (number > 0 || first.fetch_add(1, Ordering::SeqCst) == 0).then(|| ok(&number.to_string()))).await;
    assert_eq!(api.call(&call(Method::GET, &[])).await.unwrap(), 0);
    assert_eq!(api.call(&call(Method::GET, &[])).await.unwrap(), 1);
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_not_repeated() {
    let first = AtomicUsize::new(0);
    let (api, mut requests) = daemon(move |_, _| (first.fetch_add(1, Ordering::SeqCst) == 0).then(|| ok("null"))).await;
    api.call(&call(Method::PUT, &[("cores", "2")])).await.unwrap();
    let error = api.call(&call(Method::PUT, &[("cores", "3")])).await.unwrap_err();
    assert!(crate::host::pve::classify::is_answer_lost(&error), "{error}");
    requests.recv().await.unwrap();
    requests.recv().await.unwrap();
    assert!(requests.try_recv().is_err(), "sent once more");
}

#[tokio::test]
async fn a_change_with_an_answer_that_is_not_understood_counts_as_lost() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\nno";
    let (api, _requests) = daemon(move |_, _| Some(text.to_owned())).await;
    assert!(crate::host::pve::classify::is_answer_lost(&api.call(&call(Method::POST, &[])).await.unwrap_err()));
    assert_eq!(api.call(&call(Method::GET, &[])).await.unwrap_err().reason(), "PVE_DOWN");
}

#[tokio::test]
async fn a_daemon_that_is_down_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Api::new(address, tickets()).call(&call(Method::PUT, &[])).await.unwrap_err();
    assert_eq!(error.reason(), "PVE_DOWN");
    assert!(!crate::host::pve::classify::is_answer_lost(&error), "nothing was sent");
}

#[tokio::test]
async fn a_refused_ticket_is_replaced_and_the_call_made_again_once() {
    let refused = "HTTP/1.1 401 Authentication failed!\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (api, mut requests) = daemon(move |number, _| if number == 0 { Some(refused.to_owned()) } else { Some(ok("7")) }).await;
    assert_eq!(api.call(&call(Method::POST, &[("cores", "2")])).await.unwrap(), 7);
    let cookie = |r: String| r.lines().find(|l| l.to_lowercase().starts_with("cookie:")).unwrap().to_owned();
    let (first, second) = (cookie(requests.recv().await.unwrap()), cookie(requests.recv().await.unwrap()));
    assert!(first.contains("PVEAuthCookie=PVE%3Aroot%40pam%3A"), "{first}");
    assert_ne!(first, second);

    let (api, mut requests) = daemon(move |_, _| Some(refused.to_owned())).await;
    assert_eq!(api.call(&call(Method::GET, &[])).await.unwrap_err().reason(), "PVE_DOWN");
    assert!(requests.recv().await.is_some() && requests.recv().await.is_some() && requests.try_recv().is_err());
}

#[tokio::test]
async fn an_error_is_read_from_the_body_or_else_from_the_status_line() {
    let body = "{\"message\":\"VM is locked (backup)\\n\",\"data\":null}";
    let full = format!("HTTP/1.1 500 VM is locked (backup)\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let bare = "HTTP/1.1 500 VM is locked (migrate)\r\nContent-Length: 0\r\n\r\n".to_owned();
    for (answer, lock) in [(full, "backup"), (bare, "migrate")] {
        let (api, _requests) = daemon(move |_, _| Some(answer.clone())).await;
        let error = api.call(&call(Method::PUT, &[])).await.unwrap_err();
        assert_eq!(error, Error::VmLocked { vmid: 500, lock: lock.into() });
    }
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_no_success() {
    let (api, _requests) = daemon(|_, _| Some("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_owned())).await;
    assert_eq!(api.call(&call(Method::GET, &[])).await.unwrap_err().reason(), "PVE_DOWN");
}

#[tokio::test]
async fn calls_take_turns() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (r, m) = (running.clone(), most.clone());
    let (api, _requests) = daemon(move |_, _| {
        m.fetch_max(r.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::yield_now();
        r.fetch_sub(1, Ordering::SeqCst);
        Some(ok("null"))
    })
    .await;
    let (get, put) = (call(Method::GET, &[]), call(Method::PUT, &[]));
    let (a, b, c) = tokio::join!(api.call(&get), api.call(&put), api.call(&get));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn a_form_quotes_blanks_as_percent_20() {
    assert_eq!(form(&[("a b", "x&y=z+ü".into()), ("c", "a b".into())]), "a%20b=x%26y%3Dz%2B%C3%BC&c=a%20b");
}
