"""The engine behind an address: requests that join and leave a running batch, over HTTP."""
