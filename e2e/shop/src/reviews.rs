//! `reviews`: what customers say of a product. `v2` is the version with stars.

use std::net::SocketAddr;

use http::{Request, StatusCode, Uri};
use hyper::body::Incoming;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use crate::http1::{self, Reply};
use crate::ratings::proto::RatingRequest;
use crate::ratings::proto::ratings_client::RatingsClient;

const TEXTS: [&str; 2] = ["An extremely entertaining product. I laughed all the way.", "Good, but it squeaks."];

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "0.0.0.0:9080")]
    listen: SocketAddr,
    #[arg(long, default_value = "v1")]
    version: String,
    #[arg(long, default_value = "http://ratings:9080")]
    ratings: Uri,
}

pub async fn serve(args: Args) -> anyhow::Result<()> {
    // Connected when first used, so that the parts may start in any order.
    let channel = Endpoint::from(args.ratings).connect_lazy();
    let ratings = RatingsClient::new(channel);
    http1::serve(args.listen, move |request| answer(request, args.version.clone(), ratings.clone())).await
}

async fn answer(request: Request<Incoming>, version: String, mut ratings: RatingsClient<Channel>) -> Reply {
    let hop = format!("reviews {version}");
    let product = request.uri().path().strip_prefix("/reviews/").and_then(|product| product.parse().ok());
    let Some(product) = product else {
        return http1::json(StatusCode::NOT_FOUND, &json!({ "error": "there is only /reviews/1", "hops": [hop] }));
    };
    let mut question = tonic::Request::new(RatingRequest { product });
    for name in http1::TRACE {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(value) = value {
            question.metadata_mut().insert(name, value);
        }
    }
    let rating = match ratings.get(question).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => {
            let error = format!("ratings answered {:?}: {}", status.code(), status.message());
            return http1::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error, "hops": [hop] }));
        }
    };
    let reviews: Vec<_> = TEXTS
        .iter()
        .zip(&rating.stars)
        .map(|(text, stars)| match version.as_str() {
            "v1" => json!({ "text": text }),
            _ => json!({ "text": text, "stars": stars }),
        })
        .collect();
    let hops: Vec<_> = [hop].into_iter().chain(rating.hops).collect();
    http1::json(
        StatusCode::OK,
        &json!({ "product": product, "version": version, "reviews": reviews, "in_stock": rating.in_stock, "hops": hops }),
    )
}
