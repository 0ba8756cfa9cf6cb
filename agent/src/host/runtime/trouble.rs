//! What an error of the connection means.

use std::{error::Error as _, io, time::Duration};

use tonic::{Code, Status};

use crate::error::Trouble;

/// The longest text of the other side that is told: in it the cause stands at the end, after what wraps it.
const LONGEST: usize = 600;

/// No answer.
pub(super) fn silence(patience: Duration) -> (Trouble, String) {
    (Trouble::Silent, format!("no answer within {} ms", patience.as_millis()))
}

/// Of a file or a connection.
pub(super) fn of_io(error: &io::Error) -> (Trouble, String) {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound | K::NotADirectory => (Trouble::Missing, "does not exist".into()),
        K::PermissionDenied => (Trouble::Denied, "permission denied".into()),
        K::ConnectionRefused => (Trouble::Refused, "connection refused: no process listens on it".into()),
        // The queue of those who wait to be accepted is full: the daemon does not take connections.
        K::WouldBlock => (Trouble::Silent, "the daemon accepts no connections".into()),
        K::TimedOut => (Trouble::Silent, "timed out".into()),
        kind if ended(kind) => (Trouble::Silent, "no answer: the connection was cut".into()),
        _ => (Trouble::Failed, error.to_string()),
    }
}

/// Whether a connection was found cut: the daemon was restarted since it was opened, and is asked anew.
pub(super) fn is_cut(status: &Status) -> bool {
    causes(status).any(|error| {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_closed() || error.is_canceled() || error.is_incomplete_message();
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return (error.is_go_away() && error.is_remote()) || error.get_io().is_some_and(|e| ended(e.kind()));
        }
        error.downcast_ref::<io::Error>().is_some_and(|e| ended(e.kind()))
    })
}

/// Errors of a connection whose other side has ended.
fn ended(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as K;
    matches!(kind, K::ConnectionReset | K::BrokenPipe | K::UnexpectedEof | K::ConnectionAborted)
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}

/// Of an answer of gRPC, or of what came instead of one.
pub(super) fn of_status(status: &Status, patience: Duration) -> (Trouble, String) {
    if is_cut(status) {
        // It ended before it answered: that says nothing of what was asked.
        return (Trouble::Silent, "no answer: the connection was cut".into());
    }
    for error in causes(status) {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return of_io(error);
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return match error.get_io() {
                Some(error) => of_io(error),
                None => (Trouble::Garbled, format!("what listens there does not speak gRPC ({error})")),
            };
        }
    }
    let message = shortened(status.message());
    match status.code() {
        // The client's own deadline, or the daemon's, whichever was quicker.
        Code::Cancelled => silence(patience),
        Code::DeadlineExceeded if message.is_empty() => silence(patience),
        Code::DeadlineExceeded => (Trouble::Silent, format!("no answer within {} ms ({message})", patience.as_millis())),
        Code::Unimplemented => (Trouble::Unsupported, message),
        Code::PermissionDenied | Code::Unauthenticated => (Trouble::Denied, message),
        _ if message.is_empty() => (Trouble::Failed, format!("failed: {}", status.code().description())),
        _ => (Trouble::Failed, message),
    }
}

/// The text without line ends, its middle left out where it is long.
fn shortened(text: &str) -> String {
    let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let length = text.chars().count();
    if length <= LONGEST {
        return text;
    }
    let half = LONGEST / 2;
    let begin: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(length - half).collect();
    format!("{begin} ... {end}")
}
