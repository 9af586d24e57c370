"""The stand-in dose engine. NOT FOR CLINICAL USE."""
