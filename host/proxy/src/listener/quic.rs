//! HTTP/3's way in: an endpoint per worker, connection ids that name their worker.
