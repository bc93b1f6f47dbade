//! `ratings`: a gRPC server, which asks `stock` over TCP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tonic::{Request, Response, Status};

use self::proto::ratings_server::{Ratings, RatingsServer};
use self::proto::{RatingReply, RatingRequest};

#[allow(clippy::all)]
pub mod proto {
    tonic::include_proto!("shop.v1");
}

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "0.0.0.0:9080")]
    listen: SocketAddr,
    #[arg(long, default_value = "v1")]
    version: String,
    /// Host and port of the stock service
    #[arg(long, default_value = "stock:9070")]
    stock: String,
}

pub async fn serve(args: Args) -> anyhow::Result<()> {
    let listen = args.listen;
    let service = RatingsServer::new(Service { version: args.version, stock: args.stock });
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(service);
    server.serve(listen).await.with_context(|| format!("cannot listen on {listen}"))
}

struct Service {
    version: String,
    stock: String,
}

#[tonic::async_trait]
impl Ratings for Service {
    async fn get(&self, request: Request<RatingRequest>) -> Result<Response<RatingReply>, Status> {
        let product = request.into_inner().product;
        let asked = tokio::time::timeout(Duration::from_secs(2), ask(&self.stock, product)).await;
        let (stock, in_stock) = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Status::unavailable(format!("cannot ask the stock: {error:#}"))),
            Err(_) => return Err(Status::unavailable("the stock did not answer within 2 s")),
        };
        let hops = vec![format!("ratings {}", self.version), stock];
        Ok(Response::new(RatingReply { stars: vec![5, 4], in_stock, hops }))
    }
}

/// One connection for one question: `GET 1` is answered with `stock v1 17`.
async fn ask(stock: &str, product: u32) -> anyhow::Result<(String, u32)> {
    let mut stream = BufReader::new(TcpStream::connect(stock).await?);
    stream.write_all(format!("GET {product}\n").as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let (hop, number) = line.trim().rsplit_once(' ').with_context(|| format!("the stock said `{}`", line.trim()))?;
    Ok((hop.to_owned(), number.parse().with_context(|| format!("`{number}` is not a number"))?))
}
