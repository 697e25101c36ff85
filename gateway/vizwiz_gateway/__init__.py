"""Gateway: a REST endpoint and a web page in front of a Triton server that answers questions about photos.

    vizwiz-gateway --triton localhost:8001

Photo files and text go in (multipart POST); ``vizwiz_client`` asks Triton.
"""
