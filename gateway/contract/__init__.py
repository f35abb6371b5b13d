"""The contract of the sockets as documents: AsyncAPI, the schema of every frame, and a page that shows them."""
