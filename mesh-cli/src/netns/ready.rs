//! Waiting, inside a workload's namespace, for its proxy to say that it is ready: its port is on that namespace's loopback.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(10);
const ANSWER: Duration = Duration::from_secs(2);

/// Arguments: address, seconds. Ends when `GET /ready` is answered with 200, or says on standard output what it was answered
/// last.
pub(super) fn execute(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut next = || args.next()?.into_string().ok();
    let (Some(Ok(address)), Some(Ok(seconds))) = (next().map(|a| a.parse::<SocketAddr>()), next().map(|s| s.parse()))
    else {
        return ExitCode::FAILURE;
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let reason = match ask(address) {
            Ok((200, _)) => return ExitCode::SUCCESS,
            Ok((_, text)) => text,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            println!("{}", reason.trim());
            return ExitCode::FAILURE;
        }
        thread::sleep(TICK);
    }
}

/// Status and body.
fn ask(address: SocketAddr) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.ok_or_else(|| io::Error::other("the answer is not HTTP"))?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn it_asks_until_the_answer_is_good() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for status in ["503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                write!(stream, "HTTP/1.1 {status}\r\n\r\nnot yet").unwrap();
            }
        });
        assert_eq!(ask(address).unwrap(), (503, "not yet".to_owned()));
        let args = [address.to_string(), "5".into()].map(OsString::from);
        assert_eq!(execute(args.into_iter()), ExitCode::SUCCESS);
        server.join().unwrap();
    }
}
