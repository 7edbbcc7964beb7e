//! TCP probes: a connection that is accepted, and not closed at once.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::probe::in_words;
use crate::deploy::verdict::seconds;

/// How long an accepted connection is watched. Docker's own proxy accepts for every published port, and closes within a
/// millisecond when nobody listens in the container.
const CLOSE_WATCH: Duration = Duration::from_millis(50);

/// Connects once. `Ok` when the connection is accepted and stays open; both in words.
pub(super) async fn check(address: &str, limit: Duration) -> Result<String, String> {
    let begun = Instant::now();
    let stream = match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("TCP {address}: {}", in_words(&error))),
        Err(_) => {
            return Err(format!(
                "TCP {address} was not accepted within {}",
                seconds(limit)
            ));
        }
    };
    let took_ms = begun.elapsed().as_millis();
    let mut first = [0];
    match timeout(CLOSE_WATCH, stream.peek(&mut first)).await {
        Ok(Ok(0)) => Err(format!("TCP {address} was accepted and closed at once")),
        Ok(Err(error)) => Err(format!("TCP {address}: {}", in_words(&error))),
        Ok(Ok(_)) | Err(_) => Ok(format!("TCP {address} accepted in {took_ms} ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_connection_must_be_accepted_and_stay_open() {
        let limit = Duration::from_millis(300);
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = open.local_addr().unwrap().to_string();
        assert!(check(&address, limit).await.unwrap().contains("accepted in"));

        let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closing.local_addr().unwrap().to_string();
        let (checked, accepted) =
            tokio::join!(check(&address, limit), async { closing.accept().await.map(drop) });
        accepted.unwrap();
        assert!(checked.unwrap_err().ends_with("closed at once"));

        assert_eq!(
            check("127.0.0.1:1", limit).await.unwrap_err(),
            "TCP 127.0.0.1:1: connection refused"
        );
    }
}
