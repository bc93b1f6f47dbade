//! Forwarded ports: a websocket on one side, and on the other what listens on the pod's loopback.

use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use mesh_common::proto::control::mesh_server::MeshServer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Asked, State, status};
use crate::commands::fake::Fake;

/// The channels of the one port.
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// What listens in a pod.
#[derive(Clone)]
pub enum Behind {
    Control(Fake),
    /// The node's own words for why it cannot connect.
    Nothing(&'static str),
}

pub fn answer(
    state: &Arc<Mutex<State>>,
    asked: &Asked,
    request: &mut Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Value> {
    let mut state = state.lock().unwrap();
    let place = (asked.namespace.clone(), asked.name.clone());
    let missing = format!("pods {:?} not found", asked.name);
    let behind =
        state.pods.get(&place).ok_or_else(|| status(404, &json!({"reason": "NotFound", "message": missing})))?;
    let (behind, port) = (behind.clone(), asked.query["ports"].parse().unwrap());
    let upgrade = hyper::upgrade::on(&mut *request);
    let task = tokio::spawn(async move {
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgrade.await.unwrap()), Role::Server, None).await;
        let _ = serve(socket, port, behind).await;
    });
    state.forwarded.entry(place).or_default().push(task.abort_handle());
    let accept = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
    let response =
        Response::builder().status(101).header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "websocket");
    let response = response.header(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response.header(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io").body(Full::default()).unwrap())
}

async fn serve(mut socket: WebSocketStream<TokioIo<Upgraded>>, port: u16, behind: Behind) -> Result<(), Error> {
    for channel in [DATA, ERROR] {
        socket.send(frame(channel, &port.to_le_bytes())).await?;
    }
    let fake = match behind {
        Behind::Control(fake) => fake,
        Behind::Nothing(reason) => {
            socket.send(frame(ERROR, reason.as_bytes())).await?;
            // The node leaves it to the client to go.
            while socket.next().await.transpose()?.is_some() {}
            return Ok(());
        }
    };
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let server = tonic::transport::Server::builder().add_service(MeshServer::new(fake));
    // Ends with the connection, since the task that waits for it does.
    let mut running = tokio::task::JoinSet::new();
    running.spawn(server.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs))));
    let (mut from, mut to) = tokio::io::split(ours);
    let mut buffer = [0; 16 << 10];
    loop {
        tokio::select! {
            read = from.read(&mut buffer) => match read? {
                0 => return socket.close(None).await,
                length => socket.send(frame(DATA, &buffer[..length])).await?,
            },
            message = socket.next() => match message.transpose()? {
                Some(Message::Binary(bytes)) if bytes[0] == DATA => to.write_all(&bytes[1..]).await?,
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            },
        }
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    Message::binary([&[channel], data].concat())
}
