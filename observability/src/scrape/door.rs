//! Where metrics are asked for.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use super::{CONTENT_TYPE, MOST, PATIENCE, Registry};

/// A socket on which metrics are served, bound and not served yet: a process may give away its right to bind in between.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
}

impl Door {
    /// Binds `address`, which must be a loopback address (invariant 1 of [`super`]).
    ///
    /// # Errors
    /// What the operating system said; an address that others reach.
    pub fn open(address: SocketAddr) -> io::Result<Door> {
        if !address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "metrics are served on loopback alone"));
        }
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Door { listener, address })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `registry` from a thread of its own, until the process ends.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve(self, registry: Registry) -> io::Result<()> {
        let serve = move || {
            for stream in self.listener.incoming() {
                match stream {
                    Ok(stream) => {
                        // Who does not ask properly, or goes away, has no answer.
                        let _ = answer(stream, &registry);
                    }
                    // No descriptor left, for instance: that passes.
                    Err(_) => std::thread::sleep(PATIENCE / 20),
                }
            }
        };
        std::thread::Builder::new().name("scrape".into()).spawn(serve).map(|_| ())
    }
}

fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    let head = head(&mut stream)?;
    let (status, kind, body) = match judge(&head) {
        Ok(()) => ("200 OK", CONTENT_TYPE, registry.text()),
        Err(status) => (status, "text/plain; charset=utf-8", format!("{status}\n")),
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{body}"
    )
}

/// What is asked, up to the empty line.
fn head(stream: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let (mut head, mut some) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > MOST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut some)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(some.get(..count).unwrap_or_default());
    }
    String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Whether that is to be answered; if not, how.
fn judge(head: &str) -> Result<(), &'static str> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("400 Bad Request");
    };
    let host =
        lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("host"));
    // A page that has its own name lead here is a stranger's.
    if host.is_some_and(|(_, host)| !is_here(host.trim())) {
        return Err("403 Forbidden");
    }
    match (method, path.split('?').next()) {
        ("GET", Some("/metrics")) => Ok(()),
        (_, Some("/metrics")) => Err("405 Method Not Allowed"),
        _ => Err("404 Not Found"),
    }
}

/// Whether `host`, with a port or without, is this machine.
fn is_here(host: &str) -> bool {
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => return address.ip().is_loopback(),
        Err(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        let mut answer = String::new();
        // Who is not answered may see the connection broken off.
        let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        answer
    }

    /// What is answered. Who is too slow to ask has none, and asks again: that may be this machine.
    fn answered(at: SocketAddr, request: &str) -> String {
        (0..10).map(|_| ask(at, request)).find(|answer| !answer.is_empty()).unwrap_or_default()
    }

    #[test]
    fn metrics_are_told_and_nothing_else_is() {
        let door = Door::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = door.address();
        door.serve(Registry::new("worker/1")).unwrap();
        let get =
            |path: &str, host: &str| answered(at, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let found = get("/metrics", &at.to_string());
        assert!(found.starts_with("HTTP/1.1 200 OK\r\n") && found.contains(CONTENT_TYPE), "{found}");
        assert!(found.contains("target_info{service_instance_id=\"worker/1\""), "{found}");
        for host in ["localhost", "LOCALHOST:1", "127.0.0.2", "[::1]:9464", "[::1]"] {
            assert!(get("/metrics?all", host).starts_with("HTTP/1.1 200"), "{host}");
        }
        for host in ["rebound.example", "rebound.example:80", "10.0.0.1", ""] {
            assert!(get("/metrics", host).starts_with("HTTP/1.1 403"), "{host}");
        }
        assert!(get("/", "localhost").starts_with("HTTP/1.1 404"));
        assert!(
            answered(at, "POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 405")
        );
        assert!(answered(at, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
        assert_eq!(ask(at, &format!("GET /{} HTTP/1.1", "x".repeat(2 * MOST))), "", "no end of a request");
        assert!(get("/metrics", "localhost").starts_with("HTTP/1.1 200"), "and others are served on");
    }

    /// Invariant 1 of [`super::super`].
    #[test]
    fn no_other_machine_is_served() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            assert!(Door::open(address.parse().unwrap()).is_err());
        }
    }
}
