//! `web`: the page, and the same as JSON. `web.py` beside this crate does the same in Python.

use std::net::SocketAddr;

use http::{Request, StatusCode, Uri};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::http1::{self, Client, Reply};

const PAGE: &str = include_str!("../page.html");

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "0.0.0.0:9080")]
    listen: SocketAddr,
    #[arg(long, default_value = "v1")]
    version: String,
    #[arg(long, default_value = "http://reviews:9080")]
    reviews: Uri,
}

pub async fn serve(args: Args) -> anyhow::Result<()> {
    let hop = format!("web {}", args.version);
    let reviews = Client::new(&args.reviews)?;
    http1::serve(args.listen, move |request| answer(request, hop.clone(), reviews.clone())).await
}

async fn answer(request: Request<Incoming>, hop: String, reviews: Client) -> Reply {
    let path = request.uri().path();
    if path == "/" {
        return http1::text(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    }
    let Some(product) = path.strip_prefix("/api/reviews/").filter(|product| product.parse::<u32>().is_ok()) else {
        return http1::json(
            StatusCode::NOT_FOUND,
            &json!({ "error": "there is only / and /api/reviews/1", "hops": [hop] }),
        );
    };
    let headers = http1::passed_on(request.headers());
    match reviews.get(&format!("/reviews/{product}"), headers).await {
        Ok((status, mut reply)) if reply.is_object() => {
            let mut hops = vec![Value::String(hop)];
            hops.extend(reply["hops"].as_array().cloned().unwrap_or_default());
            reply["hops"] = Value::Array(hops);
            http1::json(status, &reply)
        }
        // Not from the application: from something on the way.
        Ok((status, reply)) => http1::json(status, &json!({ "error": reply, "hops": [hop] })),
        Err(error) => {
            let error = format!("cannot reach reviews: {error:#}");
            http1::json(StatusCode::BAD_GATEWAY, &json!({ "error": error, "hops": [hop] }))
        }
    }
}
